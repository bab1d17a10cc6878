"""The proof of a model that sees both sides: every engine is exact past its windows, and a fault is heard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from decoders import remixed
from embedding_models import MODELS
from msgspec import UNSET
from msgspec.structs import replace

from edgepack.bundle.decoder import Attention, Decoder
from edgepack.bundle.manifest import Gate
from edgepack_packager import families, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.proof import engine, probe, structure
from edgepack_packager.targets import Model, Request, Written
from edgepack_packager.write import write

TARGETS = ("gguf", "mlx", "onnx")
Sees = Callable[[Attention], dict[str, Any]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weights]:
    with open_checkpoint(MODELS["gemma"](tmp_path_factory.mktemp("source"))) as checkpoint:
        yield families.open_model(checkpoint, headless=True)


def proven(target: str, weights: Weights, folder: Path) -> Gate:
    ids = probe.make(weights.decoder, None).ids
    (found,) = structure.prove([targets.find(target)], weights, ids, folder).values()
    assert isinstance(found, Gate)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_every_engine_is_exact_past_its_windows(target: str, weights: Weights, tmp_path: Path) -> None:
    found = proven(target, weights, tmp_path)
    assert found.passes, found
    assert found.limit == (1e-6 if target == "gguf" else 1e-10)


def planted(sees: Sees) -> Callable[[Decoder], Decoder]:
    return lambda decoder: remixed(decoder, lambda each: replace(each, **sees(each)))


FAULTS: dict[str, Callable[[Decoder], Decoder]] = {
    "only what comes before is seen": planted(lambda each: {"bidirectional": UNSET}),
    "windows that hide nothing": planted(lambda each: {"window": each.window and 512}),
    "half of the window without its own position": planted(lambda each: {"window": each.window and each.window - 1}),
    "one position more to each side": planted(lambda each: {"window": each.window and each.window + 1}),
    "the whole window to each side": planted(lambda each: {"window": each.window and 2 * (each.window - 1)}),
    "a quarter of the window to each side": planted(lambda each: {"window": each.window and each.window // 2 + 1}),
    "windows on the other layers": lambda decoder: replace(decoder, pattern=(*decoder.pattern[1:], decoder.pattern[0])),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fault", FAULTS)
def test_structure_hears(
    fault: str, target: str, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, wrong = engine.logits, FAULTS[fault]

    class Broken:
        """Weights as a converter would write them that reads config.json otherwise."""

        def __init__(self, part: Weights) -> None:
            self.decoder, self.dtype, self.rows = wrong(part.decoder), part.dtype, part.rows

    def broken_write(part: Weights, requests: Sequence[Request], folder: Path, model: Model) -> list[Written]:
        broken = Broken(part)
        return write(broken, requests, folder, dataclasses.replace(model, decoder=broken.decoder))

    def deceived(runtime: str, variant: Path, decoder: Decoder, *rest: Any) -> Any:
        # The runtimes hold a payload's numbers against the manifest's: let both be wrong, so that the states must tell.
        return run(runtime, variant, wrong(decoder), *rest)

    monkeypatch.setattr(structure, "write", broken_write)
    monkeypatch.setattr(engine, "logits", deceived)
    found = proven(target, weights, tmp_path)
    assert found.value > 100 * found.limit, found
