"""What variants lose on a held-out text: which text may judge, and figures against a plain oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import golden_models
import numpy as np
import pytest
import tokenizers
from decoders import changed
from models import make_llama
from msgspec.structs import replace
from numpy.typing import NDArray

from edgepack import runtime
from edgepack.bundle import receipt as receipts
from edgepack.bundle.receipt import Measured, Receipt
from edgepack.errors import EngineError, SourceError, UsageError
from edgepack.runtime import Options
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import calibration, families, reference, targets
from edgepack_packager.build import Built, Recipe, build
from edgepack_packager.calibration.text import Corpus
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.progress import Silent
from edgepack_packager.proof import compare, held_out, receipt
from edgepack_packager.proof.held_out import HeldOut
from edgepack_packager.proof.receipt import Measuring
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write


@pytest.fixture(scope="module")
def demo() -> Iterator[Weights]:
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        yield families.open_model(checkpoint)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json((golden_models.DEMO / "tokenizer.json").read_bytes(), None, False)


def test_the_built_in_text_is_long_enough_and_no_calibration_has_it(shared: Path) -> None:
    held = held_out.read(held_out.BUILT_IN)
    seen = calibration.text.read(calibration.text.BUILT_IN)
    for folder in sorted((shared / "tokenizers").iterdir()):
        known = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids, others = (known.encode(corpus.text, add_special_tokens=False).ids for corpus in (held, seen))
        assert len(ids) >= held_out.WHOLE, folder.name
        assert held_out.overlap(ids, others) < held_out.SHARED / 5, folder.name


def chosen(
    tokenizer: Tokenizer, demo: Weights, asked: str | None = "built-in", seen: Corpus | None = None, payloads: int = 3
) -> HeldOut | None:
    told = [] if seen is None else tokenizer.encode(seen.text, bos=False)
    return held_out.choose(asked, seen, told, tokenizer, demo.decoder, payloads)


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_a_text_that_a_calibration_saw_is_refused_with_its_share(
    share: float, tokenizer: Tokenizer, demo: Weights
) -> None:
    held = held_out.read(held_out.BUILT_IN).text
    own = calibration.text.read(calibration.text.BUILT_IN).text
    leaked = Corpus("notes.txt", own + held[: int(share * len(held))])
    with pytest.raises(SourceError, match=r"notes\.txt calibrated: [0-9.]+% of its runs of 13") as told:
        chosen(tokenizer, demo, seen=leaked)
    assert float(str(told.value).split("calibrated: ")[1].split("%")[0]) == pytest.approx(100 * share, abs=12)


def test_a_calibrations_own_text_is_refused_however_short(tokenizer: Tokenizer, demo: Weights, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("tea")
    with pytest.raises(SourceError, match=r"100\.0%"):
        chosen(tokenizer, demo, str(tmp_path / "own.txt"), Corpus("own.txt", "tea"))
    assert chosen(tokenizer, demo, seen=calibration.text.read(calibration.text.BUILT_IN)) is not None


def test_who_asks_gets_the_whole_and_who_does_not_what_takes_seconds(tokenizer: Tokenizer, demo: Weights) -> None:
    asked, unasked = chosen(tokenizer, demo), chosen(tokenizer, demo, None)
    assert asked is not None
    assert unasked is not None
    assert (asked.tokens, unasked.tokens) == (held_out.WHOLE, held_out.SHORT)
    assert set(unasked.windows) < set(asked.windows)  # so that the reference need not read them again
    large = changed(demo.decoder, n_layers=16, hidden_size=2048, intermediate_size=8192, n_heads=32, n_kv_heads=8)
    assert held_out.choose(None, None, [], tokenizer, large, 3) is None
    assert held_out.choose("built-in", None, [], tokenizer, large, 3) is not None


def test_windows_begin_as_texts_do_and_are_no_longer_than_the_context(demo: Weights) -> None:
    data = (golden_models.DEMO / "tokenizer.json").read_bytes()
    known = Tokenizer.from_json(data, 1, True)
    found = held_out.choose("built-in", None, [], known, replace(demo.decoder, context=64), 3)
    assert found is not None
    assert {(window[0], len(window)) for window in found.windows} == {(1, 64)}
    assert found.tokens == held_out.WHOLE
    ids = known.encode(found.corpus.text, bos=False)
    assert list(found.windows[0][1:]) == ids[:63]
    assert any(list(found.windows[-1][1:]) == ids[at : at + 63] for at in range(len(ids) * 9 // 10, len(ids)))


def test_texts_that_cannot_judge_are_refused(tokenizer: Tokenizer, demo: Weights, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A word.")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name in ("short.txt", "latin.txt", "absent.txt", "."):
        with pytest.raises(SourceError, match=r"--receipt|UTF-8"):
            chosen(tokenizer, demo, str(tmp_path / name))
    with pytest.raises(UsageError, match="--receipt"):
        Recipe(("gguf",), ("q4",), unproven=True, receipt="built-in")


def log_softmax(logits: Float32) -> NDArray[np.float64]:
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return np.asarray(exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True)))


def by_oracle(windows: Sequence[Sequence[int]], ours: Sequence[Float32], theirs: Sequence[Float32]) -> dict[str, float]:
    """The figures by their definitions, of all positions at once."""
    q, p = (np.concatenate([log_softmax(each) for each in logits]) for logits in (ours, theirs))
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    same = (p.argmax(axis=-1) == q.argmax(axis=-1)).astype(float)
    at, following, start = [], [], 0
    for ids in windows:
        at += range(start, start + len(ids) - 1)
        following += ids[1:]
        start += len(ids)
    surprise, known = -q[at, following], -p[at, following]
    more, n = surprise - known, len(kl)
    ratio = np.exp(more.mean())
    return {
        "kl": kl.mean(),
        "kl_error": kl.std(ddof=1) / n**0.5,
        "kl_p99": np.sort(kl)[round(0.99 * (n - 1))],
        "top1": same.mean(),
        "top1_error": same.std(ddof=1) / n**0.5,
        "perplexity": np.exp(surprise.mean()),
        "ratio": ratio,
        "ratio_error": ratio * more.std(ddof=1) / len(more) ** 0.5,
    }


def from_engine(name: str, variant: Path, weights: Weights, ids: Sequence[int]) -> Float32:
    session = runtime.find(name).open(variant, weights.decoder, Options(len(ids), 1, "f32", 128))
    try:
        return np.concatenate([session.forward_all(ids[at : at + 128]) for at in range(0, len(ids), 128)])
    finally:
        session.close()


def sealed(built: Built) -> Receipt:
    found = receipts.read(built.open())
    assert found is not None
    return found


def measured(built: Built, variant: str) -> Measured:
    found = sealed(built).of(variant)
    assert found is not None
    return found


def test_figures_are_those_of_a_plain_oracle(demo_bundle: Built, demo: Weights, tokenizer: Tokenizer) -> None:
    held = chosen(tokenizer, demo, None, payloads=len(demo_bundle.manifest.variants))
    assert held is not None
    whole = sealed(demo_bundle)
    assert [each.variant for each in whole.variants] == [each.id for each in demo_bundle.manifest.variants]
    assert (whole.text.tokens, whole.text.sha256) == (held.tokens, held.corpus.sha256)
    theirs = [reference.logits(demo, ids) for ids in held.windows]
    for name in ("gguf-q4_k_m", "mlx-4bit_mixed"):
        folder, target = demo_bundle.path / "variants" / name, name.split("-")[0]
        if target == "mlx":  # whose engine is slow here and rounds nothing
            assert measured(demo_bundle, name).by == receipt.REFERENCE
        ours = [from_engine(target, folder, demo, ids) for ids in held.windows]
        lost = measured(demo_bundle, name).lost
        for figure, expected in by_oracle(held.windows, ours, theirs).items():
            assert getattr(lost, figure) == pytest.approx(expected, rel=0.02 if figure == "kl_p99" else 2e-3), figure
    exact = measured(demo_bundle, "gguf-f32").lost
    assert abs(exact.kl) < 1e-9
    assert exact.top1 > 0.999
    own = by_oracle(held.windows, theirs, theirs)["perplexity"]
    assert whole.perplexity == pytest.approx(own, rel=1e-3)


def test_a_calibrated_variant_stands_beside_the_plain_one_in_its_bytes(
    demo_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is not read again: the build of the other bundle did."""
    read, known = [], reference.hidden

    def spied(weights: Weights, ids: Sequence[int], *rest: object, **more: object) -> Float32:
        read.append(len(ids))
        return known(weights, ids, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "hidden", spied)
    both = build("demo", Recipe(("gguf",), ("q4",), calibrate="built-in"), tmp_path / "cal.edgepack")
    found, plain = measured(both, "gguf-q4_k_m-cal"), measured(demo_bundle, "gguf-q4_k_m")
    assert found.plain == plain.lost
    assert found.lost != plain.lost
    assert plain.plain is None
    assert [path.name for path in (both.path / "variants").iterdir()] == ["gguf-q4_k_m-cal"]
    assert read  # for the structure, and over the payload's weights
    assert sealed(both).text.window not in read


def test_logits_that_are_no_numbers_are_no_figures() -> None:
    sound = np.zeros((3, 5), np.float32)
    broken = np.where(np.arange(5) == 2, np.float32(np.nan), sound)
    assert receipt.figures([compare.positions(sound, sound, [1, 2, 3])]).kl == 0
    with pytest.raises(EngineError, match="held-out"):
        receipt.figures([compare.positions(broken, sound, [1, 2, 3])])


def test_figures_are_the_same_where_little_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(make_llama(tmp_path / "model", context=48)) as checkpoint:
        weights = families.open_model(checkpoint)
        request = Request(targets.find("gguf"), "q4_0", "q4_0")
        write(weights, [request], tmp_path, Model("small", weights.decoder, weights.dtype))
        ids = np.random.default_rng(3).integers(0, weights.decoder.n_vocab, (5, 48)).tolist()
        text = HeldOut(Corpus("random", ""), ids)

        def figures() -> object:
            asked = Measuring(weights, text, lambda one: reference.hidden(weights, one), tmp_path, Silent())
            found = asked.by_engine(request, tmp_path / request.id, "f32")
            assert asked.by_engine(request, tmp_path / request.id, "f32") == found
            return found, asked.receipt([], []).perplexity

        roomy = figures()
        monkeypatch.setattr(receipt, "KEPT", 0)
        monkeypatch.setattr(receipt, "TOGETHER", 2)
        assert figures() == roomy
        assert len(list(tmp_path.glob("expected.*"))) <= 5  # and those of the roomy one, which kept all
        assert receipt.room(text, 10) == 4 * 10 * 48 * (2 + 2)
