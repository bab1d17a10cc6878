"""Receipts: read with the bundle that they belong to, and with no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import small_bundle

from edgepack.bundle.files import open_bundle
from edgepack.bundle.receipt import FILE, MAX_SIZE, encode, read
from edgepack.errors import BundleDamagedError, BundleTooNewError


def written(folder: Path, data: bytes) -> Path:
    return small_bundle.add(small_bundle.write(folder), FILE, data)


def test_a_receipt_is_read_as_it_was_written(tmp_path: Path) -> None:
    data = small_bundle.receipt({"fake-q4": 0.03}, {"fake-q4": 0.05})
    receipt = read(open_bundle(written(tmp_path / "one", data)))
    assert receipt is not None
    found = receipt.of("fake-q4")
    assert found is not None
    assert found.plain is not None
    assert (found.lost.kl, found.plain.kl, receipt.text.tokens) == (0.03, 0.05, 8192)
    assert receipt.of("fake-q8") is None
    assert msgspec.json.decode(encode(receipt)) == json.loads(data)


def test_a_bundle_without_one_has_none(tmp_path: Path) -> None:
    assert read(open_bundle(small_bundle.write(tmp_path / "none"))) is None


def test_fields_to_come_are_passed_over(tmp_path: Path) -> None:
    data = small_bundle.receipt({"fake-q4": 0.03}, seconds=12)
    assert read(open_bundle(written(tmp_path / "one", data))) is not None


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"source": "cd" * 32}, "another source"),
        ({"text": {"name": "held.txt", "sha256": "no", "tokens": 8, "window": 8}}, "sha256"),
        ({"text": {"name": "held.txt", "sha256": "ab" * 32, "tokens": 0, "window": 8}}, "tokens"),
        ({"perplexity": "much"}, "perplexity"),
        ({"variants": []}, "variants"),
        ({"variants": [{"variant": "fake-q5", "by": "fake", "lost": small_bundle.figures(1)}]}, "'fake-q5'"),
        ({"variants": 2 * [{"variant": "fake-q4", "by": "fake", "lost": small_bundle.figures(1)}]}, "twice"),
        ({"variants": [{"variant": "fake-q4", "by": "fake", "lost": {"kl": 1.0}}]}, "kl_error"),
    ],
)
def test_what_is_no_receipt_of_this_bundle_is_refused(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    bundle = open_bundle(written(tmp_path / "one", small_bundle.receipt({"fake-q4": 0.03}, **changes)))
    with pytest.raises(BundleDamagedError, match=what):
        read(bundle)


@pytest.mark.parametrize("data", [b"", b"[]", b"{" * 9999, b'{"version": 1, "perplexity": 1e999}', b"\xff"])
def test_bytes_that_are_no_receipt_are_a_sentence(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BundleDamagedError, match=FILE):
        read(open_bundle(written(tmp_path / "one", data)))


def test_one_that_fills_memory_is_not_read(tmp_path: Path) -> None:
    bundle = open_bundle(written(tmp_path / "one", small_bundle.receipt({"fake-q4": 0.03}) + b" " * MAX_SIZE))
    with pytest.raises(BundleDamagedError, match="more than any"):
        read(bundle)


def test_a_figure_that_was_changed_later_differs_from_its_digest(tmp_path: Path) -> None:
    place = written(tmp_path / "one", small_bundle.receipt({"fake-q4": 0.03}))
    data = (place / FILE).read_bytes()
    (place / FILE).write_bytes(data.replace(b"0.03,", b"0.01,"))
    assert (place / FILE).read_bytes() != data
    with pytest.raises(BundleDamagedError, match="sha256"):
        read(open_bundle(place, verify="sizes"))


def test_one_of_a_newer_edgepack_leaves_the_bundle_open(tmp_path: Path) -> None:
    bundle = open_bundle(written(tmp_path / "one", b'{"version": 2}'))
    with pytest.raises(BundleTooNewError, match="version 2"):
        read(bundle)
