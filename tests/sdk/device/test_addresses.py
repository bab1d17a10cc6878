"""An address space with a limit is compared with what an engine takes, before its native code meets the limit."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

import edgepack
from edgepack.device import addresses
from edgepack.errors import ContextTooLargeError, EngineMissingError
from edgepack_packager.build import Built

MIB = 1 << 20


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No limit, whatever the one that these tests run under."""
    monkeypatch.setattr(addresses, "left", lambda: None)
    return monkeypatch


def test_without_a_limit_nothing_is_short(limit: pytest.MonkeyPatch) -> None:
    assert addresses.shortage("gguf", 1 << 50, 1000) is None


def test_what_is_left_is_the_limit_without_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for limit in (taken + 64 * MIB, taken // 2, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, resource.RLIM_INFINITY))
        found = addresses.left()
        if limit == resource.RLIM_INFINITY:
            assert found is None
        else:
            assert found is not None
            assert found[1] == limit
            assert abs(found[0] - max(0, limit - taken)) < 16 * MIB


def test_bytes_and_threads_count(limit: pytest.MonkeyPatch) -> None:
    limit.setattr(addresses, "left", lambda: (300 * MIB, 400 * MIB))
    assert addresses.shortage("gguf", 150 * MIB) is None
    assert addresses.shortage("gguf", 250 * MIB) is not None
    said = addresses.shortage("gguf", threads=8)
    assert said is not None
    assert "300.0 MiB are left of the 400.0 MiB" in said
    assert "memory" in said


def test_an_engine_without_a_place_is_not_asked(demo_bundle: Built, limit: pytest.MonkeyPatch) -> None:
    limit.setattr(addresses, "left", lambda: (60 * MIB, 160 * MIB))
    with pytest.raises(EngineMissingError, match=r"gguf needs about .* of memory addresses"):
        edgepack.load(demo_bundle.path, "gguf")


def test_a_model_without_a_place_is_not_loaded(demo_bundle: Built, limit: pytest.MonkeyPatch) -> None:
    limit.setattr(addresses, "left", lambda: (112 * MIB, 260 * MIB))
    with pytest.raises(ContextTooLargeError, match=r"memory addresses.*Raise that limit"):
        edgepack.load(demo_bundle.path, "gguf", threads=1)
