"""Forms of their own: every matrix in another than its neighbours', written, read back, measured and judged alike."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import golden_models
import numpy as np
import pytest
from damage import DAMAGE, Damaged
from decoders import describe
from oracle_models import ORACLE_MODELS

from edgepack_packager import families, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.proof import tensors
from edgepack_packager.proof.gates import missed
from edgepack_packager.targets import Forms, Model, Request
from edgepack_packager.write import write


@pytest.fixture(scope="module")
def demo() -> Iterator[Weights]:
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        yield families.open_model(checkpoint)


def motley(target: str, weights: Weights) -> Forms:
    """Give each slot the next of the target's forms."""
    slots = targets.find(target).slots(weights.decoder, weights.dtype)
    names = dict.fromkeys(form for slot in slots for form in slot.forms)
    order = cycle(names)
    chosen: dict[str, str] = {}
    for slot in slots:
        form = next(each for each in order if each in slot.forms)
        chosen |= dict.fromkeys(slot.tensors, form)
    assert set(chosen.values()) == set(names)
    return chosen


@pytest.mark.parametrize("target", targets.names())
def test_a_variant_of_all_forms_holds_and_is_what_was_measured(target: str, demo: Weights, tmp_path: Path) -> None:
    chosen, model = targets.find(target), Model("motley", demo.decoder, demo.dtype)
    counts = {
        name: np.linspace(0.5, 2, shape[1], dtype=np.float32)
        for name, shape in demo.decoder.tensors()
        if len(shape) == 2
    }
    model = Model("motley", demo.decoder, demo.dtype, importance=counts, forms=motley(target, demo))
    request = Request(chosen, "motley", chosen.scheme("q4", model), "calibrated", model.forms, "motley")
    (written,) = write(demo, [request], tmp_path, model)
    folder = tmp_path / f"{target}-motley"
    assert written == request.measure(demo.decoder, demo.dtype)
    assert missed(tensors.prove(chosen, folder, demo, lambda _: None, counts).findings) == []
    reader = chosen.read(folder, demo.decoder)
    for name, form in model.forms.items():
        rows = demo.rows(name, 0, 96)
        np.testing.assert_array_equal(reader.rows(name, 0, 96), chosen.rounded(model, name, rows, form), str(form))
    reader.close()


@pytest.mark.parametrize(
    ("target", "scheme"),
    [
        ("gguf", "q4_k_m"),
        ("gguf", "iq4_xs"),
        ("onnx", "int4_mixed"),
        ("onnx", "int4_b128_asym"),
        ("mlx", "4bit_mixed"),  # one of a single form rounds its scales later, as mlx does
    ],
)
def test_the_forms_of_a_scheme_are_what_it_writes(target: str, scheme: str, demo: Weights, tmp_path: Path) -> None:
    chosen, decoder = targets.find(target), demo.decoder
    forms = chosen.ruled(decoder, demo.dtype, scheme)
    counts = {name: np.linspace(0.5, 2, dict(decoder.tensors())[name][1], dtype=np.float32) for name in forms}
    requests = [
        Request(chosen, "", scheme, "calibrated"),
        Request(chosen, "", chosen.scheme("q4", Model("", decoder, demo.dtype)), "calibrated", forms, "ruled"),
    ]
    by_rule, by_forms = write(demo, requests, tmp_path, Model("ruled", decoder, demo.dtype, importance=counts))
    assert by_rule.tensor_bytes == by_forms.tensor_bytes
    assert list(forms) == [name for name, shape in decoder.tensors() if len(shape) == 2]
    readers = [chosen.read(tmp_path / request.id, decoder) for request in requests]
    for name in forms:
        ruled, formed = (reader.rows(name, 0, 96) for reader in readers)
        np.testing.assert_array_equal(ruled, formed, name)
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("target", targets.names())
def test_a_slot_takes_the_bytes_that_it_says(target: str, demo: Weights) -> None:
    chosen, decoder = targets.find(target), demo.decoder
    scheme = chosen.scheme("q4", Model("demo", decoder, demo.dtype))
    slots = chosen.slots(decoder, demo.dtype)
    assert [name for slot in slots for name in slot.tensors] == [n for n, shape in decoder.tensors() if len(shape) == 2]
    forms = {name: min(slot.forms) for slot in slots for name in slot.tensors}
    before = chosen.measure(decoder, demo.dtype, scheme, forms).tensor_bytes
    for slot in slots[:4]:
        sizes = list(slot.forms.values())
        assert sizes == sorted(sizes)
        for form, size in slot.forms.items():
            changed = chosen.measure(decoder, demo.dtype, scheme, {**forms, **dict.fromkeys(slot.tensors, form)})
            assert changed.tensor_bytes - before == size - slot.forms[min(slot.forms)], form


def test_parts_that_a_format_fuses_share_a_slot(tmp_path: Path) -> None:
    folder = golden_models.folder("phi3-long", tmp_path)
    with open_checkpoint(folder) as checkpoint:
        decoder = families.open_model(checkpoint, ORACLE_MODELS["phi3-long"].context).decoder
    first = {name: targets.find(name).slots(decoder, "bf16")[1].tensors for name in targets.names()}
    together = tuple(f"layers.0.attention.{part}" for part in "qkv")
    assert first == {"gguf": together, "mlx": together, "onnx": ("layers.0.attention.q",)}


@pytest.mark.parametrize("target", targets.names())
def test_a_slot_offers_only_forms_whose_blocks_fill_its_rows(target: str) -> None:
    slots = targets.find(target).slots(describe(hidden_size=64, intermediate_size=96), "bf16")
    forms = {slot.tensors[0]: slot.forms for slot in slots}
    assert set(forms["layers.0.mlp.down"]) < set(forms["layers.0.mlp.up"]) or target == "gguf"
    assert not any(form.endswith("_K") for form in forms["layers.0.mlp.up"])


@pytest.mark.parametrize("target", targets.names())
@pytest.mark.parametrize("damage", ["one layer x 1.1", "every v x 1.2", "two layers swapped"])
def test_damage_is_heard_in_any_form(damage: str, target: str, demo: Weights, tmp_path: Path) -> None:
    chosen, own = targets.find(target), motley(target, demo)
    model = Model("motley", demo.decoder, demo.dtype, forms=own)
    request = Request(chosen, "motley", chosen.scheme("q4", model), "own", own, "motley")
    write(Damaged(demo, DAMAGE[damage]), [request], tmp_path, model)
    found = missed(tensors.prove(chosen, tmp_path / request.id, demo, lambda _: None).findings)
    assert any(" of layers." in each for each in found)
