"""The manifest as bytes: what it accepts, what it refuses, and that nothing makes it fail in another way."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import pytest
import small_bundle
from hypothesis import given
from hypothesis import strategies as st

from edgepack.bundle.files import listed
from edgepack.bundle.manifest import VERSION, decode, encode
from edgepack.errors import BundleDamagedError, BundleTooNewError, EdgepackError


def plain() -> dict[str, Any]:
    return small_bundle.manifest(
        [small_bundle.variant("gguf-q4"), small_bundle.variant("onnx-int4")],
        files=[small_bundle.entry("LICENSE", b"MIT")],
    )


def as_bytes(document: object) -> bytes:
    return json.dumps(document).encode()


SEED = as_bytes(plain())


def test_bytes_survive_a_round_trip() -> None:
    data = encode(decode(SEED))
    assert encode(decode(data)) == data
    assert data.endswith(b"}\n")
    assert list(json.loads(data)) == list(plain())


@pytest.mark.parametrize(
    "schema", [{"version": VERSION + 1, "features": []}, {"version": VERSION, "features": ["paged"]}]
)
def test_a_newer_schema_asks_for_an_upgrade_whatever_else_it_holds(schema: dict[str, Any]) -> None:
    with pytest.raises(BundleTooNewError, match="pip install -U edgepack"):
        decode(as_bytes({"schema": schema, "fields": "of the future"}))


@pytest.mark.parametrize(("kind", "features"), [("f16", ["kv_cache"]), ("q8", ["kv_cache", "kv_cache_q8"])])
def test_a_built_in_kv_cache_is_told_and_no_other(kind: str, features: list[str]) -> None:
    document = plain() | {"schema": {"version": 2, "features": features}}
    document["variants"][1]["kv_cache"] = kind
    manifest = decode(as_bytes(document))
    assert [variant.kv_cache for variant in manifest.variants] == [None, kind]
    assert encode(manifest).count(f'"kv_cache": "{kind}"'.encode()) == 1
    assert b'"kv_cache": null' not in encode(manifest)


def test_the_kind_of_the_norms_is_told_where_they_are_no_rms_norms() -> None:
    document = plain()
    assert b'"norm"' not in encode(decode(as_bytes(document)))
    document["decoder"]["norm"] = "layer"
    manifest = decode(as_bytes(document))
    assert encode(manifest).count(b'"norm": "layer"') == 1
    rms, layer = (dict(decode(data).decoder.tensors()) for data in (SEED, encode(manifest)))
    assert layer.keys() - rms.keys() == {f"{name}.bias" for name in rms if name.endswith("norm")}
    assert {layer[name] for name in layer.keys() - rms.keys()} == {(manifest.decoder.hidden_size,)}


def exported(**changes: object) -> dict[str, Any]:
    """Return a manifest of a model that an exporter wrote, with ``changes`` of its graph."""
    document = plain() | {"schema": {"version": 2, "features": ["exported"]}}
    layers = range(document["decoder"]["n_layers"])
    cells = [{"past": f"past.{i}.{part}", "present": f"present.{i}.{part}"} for i in layers for part in ("k", "v")]
    graph = {"ids": "ids", "mask": "mask", "positions": None, "logits": "logits", "cells": cells} | changes
    document["decoder"]["exported"] = {"exporter": "program 1.0", "n_parameters": 99, "graph": graph}
    document["variants"][1]["proof"]["against"] = "another 2.0"
    return document


def test_what_an_exporter_wrote_is_told_and_nothing_else_of_it_is_known() -> None:
    manifest = decode(as_bytes(exported()))
    assert [each.proof and bool(each.proof.against) for each in manifest.variants] == [False, True]
    assert manifest.decoder.n_parameters == 99
    assert list(manifest.decoder.tensors()) == []
    assert encode(decode(encode(manifest))) == encode(manifest)
    data = encode(decode(SEED))
    assert b"exported" not in data
    assert b"against" not in data


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ids": ""}, "graph.ids"),
        ({"ids": "mask"}, "'mask' stands there twice"),
        ({"logits": "present.0.k"}, "stands there twice"),
        ({"cells": []}, "graph.cells"),
        ({"cells": [{"past": "a", "present": "b"}] * 2}, "cells|twice"),
        ({"cells": [{"past": str(i), "present": str(-1 - i)} for i in range(200)]}, "layers have"),
        ({"more": 1}, "more"),
    ],
)
def test_a_graph_that_cannot_be_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(BundleDamagedError, match=named):
        decode(as_bytes(exported(**changes)))


def change(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place: Any = document
    for part in parents:
        place = place[part]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("surprise", 1, "surprise"),
        ("variants.0.surprise", 1, "variants"),
        ("decoder.n_layers", 0, "decoder.n_layers"),
        ("decoder.n_layers", "2", "decoder.n_layers"),
        ("decoder.norm", "rms", "decoder.norm"),
        ("decoder.norm", None, "decoder.norm"),
        ("decoder.kinds.0.mixer.rope.scaling", {"type": "yarn"}, "scaling"),
        ("files.0.sha256", "ABC", "files"),
        ("files.0.size", -1, "files"),
        ("files.0.path", "../LICENSE", "LICENSE"),
        ("files.0.path", "/etc/passwd", "passwd"),
        ("files.0.path", "a//b", "a//b"),
        ("files.0.path", "a\\b", "a"),
        ("files.0.path", "", "files"),
        ("files.0.path", "a" * 1025, "more than 1024 letters"),
        ("files.0.path", "a/" * 16 + "a", "than 16 parts"),
        ("variants.0.id", "a/b", "variants"),
        ("source.revision", "main", "source.revision"),
        ("variants.0.proof.gates.0.holds", "<", "holds"),
        ("variants.0.kv_cache", "f8", "kv_cache"),
        ("decoder.n_layers", 10**7, "decoder.n_layers"),
        ("decoder.n_vocab", 10**9, "decoder.n_vocab"),
        ("decoder.context", 2**31, "decoder.context"),
        ("decoder.kinds.0.mixer.rope.dim", 2**31 - 2, "rope.dim"),
        ("decoder.kinds.0.mixer.rope.dim", 18, "decoder.kinds.0..mixer"),
        ("decoder.kinds.0.mixer.n_kv_heads", 3, "decoder.kinds.0..mixer"),
        ("decoder.pattern", [0] * 513, "decoder.pattern"),
        ("decoder.pattern", [0, 1], "decoder.pattern"),
        ("decoder.pattern", [-1], "decoder.pattern"),
        ("variants.0.weights_bytes", 2**60, "weights_bytes"),
        ("variants.0.loading_bytes", -1, "loading_bytes"),
        ("variants", [{}] * 257, "variants"),
        ("chat", [[]] * 10 + [json.loads("[" * 99 + "]" * 99)], "levels deep"),
    ],
)
def test_a_field_that_does_not_fit_is_named(path: str, value: object, named: str) -> None:
    with pytest.raises(BundleDamagedError, match=named.replace("\\", "")):
        decode(as_bytes(change(plain(), path, value)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("variants.0.id", ".."),
        ("variants.0.id", "onnx-int4"),
        ("variants.0.id", "a\0b"),
        ("files.0.path", "manifest.json"),
        ("files.0.path", "variants/gguf-q4/model.bin"),
        ("files.0.path", "a\0b"),
    ],
)
def test_a_path_that_is_not_its_owners_is_refused(path: str, value: str) -> None:
    with pytest.raises(BundleDamagedError):
        listed(decode(as_bytes(change(plain(), path, value))))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'"' * 100_001,
        SEED[:-1],
        SEED + b"x",
        b"\xef\xbb\xbf" + SEED,
    ]
    + [SEED.replace(b'"n_layers": 2', b'"n_layers": 2' + b"0" * 5000)]
    + [SEED.replace(b'"MIT"', text) for text in (b"NaN", b"1e999", b'"\\ud800"', b'"\xed\xa0\x80"')]
    + [b'{"a": ' * 100_000, SEED.replace(b'"name": "small"', b'"name": "small", "name": "other"', 1)],
)
def test_what_is_no_manifest_is_damaged(data: bytes) -> None:
    with pytest.raises(BundleDamagedError, match=r"manifest\.json"):
        decode(data)


def test_brackets_in_texts_are_no_levels() -> None:
    document = plain() | {"name": '\\"' + "[{" * 100}
    assert decode(as_bytes(document)).name == document["name"]


def test_the_parameters_are_those_of_all_tensors() -> None:
    decoder = decode(SEED).decoder
    assert decoder.n_parameters == sum(math.prod(shape) for _, shape in decoder.tensors())


def holds_or_refuses(data: bytes) -> None:
    with suppress(EdgepackError):
        listed(decode(data))


@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_raise_nothing_but_our_errors(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SEED)
    for place, value in changes:
        data[place] = value
    holds_or_refuses(bytes(data))


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
values = leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=5), leaves, max_size=3)


def paths(document: object, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else []
    )
    below = [path for key, value in items for path in paths(value, (*above, key))]
    return [above, *below] if above else below


@given(st.sampled_from(paths(plain())), values)
def test_changed_fields_raise_nothing_but_our_errors(path: tuple[Any, ...], value: object) -> None:
    document = plain()
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    holds_or_refuses(as_bytes(document))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_raise_nothing_but_our_errors(data: bytes) -> None:
    holds_or_refuses(data)
