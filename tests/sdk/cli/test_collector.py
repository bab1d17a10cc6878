"""When garbage is collected in a command."""

from __future__ import annotations

import gc

import pytest

from edgepack.cli.collector import resting


def test_nothing_is_collected_inside_the_block_and_again_after_it() -> None:
    assert gc.isenabled()
    with resting():
        assert not gc.isenabled()
        with resting():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="in the block"), resting():
        raise ValueError("in the block")
    assert gc.isenabled()
