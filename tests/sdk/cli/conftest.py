"""What all tests of commands have."""

from __future__ import annotations

import pytest

from edgepack.measuring import bandwidth


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench in this process reads less memory for the bandwidth, which ``measuring/test_bandwidth.py`` tests."""
    monkeypatch.setattr(bandwidth, "BUFFER", 1 << 22)
    monkeypatch.setattr(bandwidth, "last_level_cache", lambda: 0)
