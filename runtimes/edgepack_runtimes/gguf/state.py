"""The KV cache of a context as bytes, whole: with what the windows of its layers have left behind.

llama.cpp writes two kinds of state, which differ in their heads and hold the same description of the memory. That of a
sequence leaves out what a window hides, so a session could neither rewind into it nor go on bit for bit. That of a
context has it all, but the tokens after a restore would be written over its cells. So a context's state is written,
and read as that of its one sequence. (llama_kv_cache::state_write and state_read_meta of the bound versions.)
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

import numpy as np

from edgepack.snapshot import Buffer
from edgepack_runtimes.gguf import abi
from edgepack_runtimes.gguf.ring import Bytes, Ring, rearranged

_SEQUENCE: Final = 0
_ALL: Final = -1
_SEQUENCE_HEAD: Final = struct.pack("<Ii", 0xAF143CD8, _SEQUENCE)
"""What a sequence's state begins with: a magic number and the sequence."""


def write_state(native: ctypes.CDLL, context: int | None) -> list[Buffer] | None:
    """Return the parts of the state, None where llama.cpp cannot write it."""
    state = np.empty(native.llama_state_get_size(context), np.uint8)
    if not state.size or native.llama_state_get_data(context, state.ctypes.data, state.size) != state.size:
        return None
    # A context's state begins with the architecture's name: a 32-bit size and so many characters.
    (name,) = struct.unpack_from("<I", state.data)
    return [_SEQUENCE_HEAD, state[4 + name :].data]


def read_state(native: ctypes.CDLL, context: int | None, payload: memoryview) -> int | None:
    """Replace the cache and return its length, None where llama.cpp refuses; the cache is then in any state."""
    state = np.frombuffer(payload, np.uint8)
    if native.llama_state_seq_set_data(context, state.ctypes.data, state.size, _SEQUENCE) != state.size:
        return None
    length: int = native.llama_memory_seq_pos_max(native.llama_get_memory(context), _SEQUENCE) + 1
    return length


def remove_from(native: ctypes.CDLL, memory: int | None, position: int) -> bool:
    """Remove the tokens of the sequence from a position on, False where llama.cpp cannot.

    From the first on, all goes: a state that was refused may have left tokens of other sequences, or before position 0.
    """
    if position:
        return bool(native.llama_memory_seq_rm(memory, _SEQUENCE, position, -1))
    native.llama_memory_clear(memory, False)
    return True


def write_sequence(native: ctypes.CDLL, context: int | None, flags: int, sequence: int = _SEQUENCE) -> Bytes | None:
    """Return the state of a sequence, None where llama.cpp cannot write it: all of it (``STATE_OF_ALL``), or what
    layers have that do not keep keys and values of all positions (``STATE_OF_THE_REST``)."""
    size = native.llama_state_seq_get_size_ext(context, sequence, flags)
    state = np.empty(size, np.uint8)
    args = context, state.ctypes.data, size, sequence, flags
    return state if size and native.llama_state_seq_get_data_ext(*args) == size else None


def read_rest(native: ctypes.CDLL, context: int | None, state: Bytes, sequence: int = _SEQUENCE) -> bool:
    """Replace what layers have of a sequence that do not keep keys and values of all positions; False where llama.cpp
    refuses."""
    args = context, state.ctypes.data, state.size, sequence, abi.STATE_OF_THE_REST
    done: int = native.llama_state_seq_set_data_ext(*args)
    return done == state.size


def rearrange(native: ctypes.CDLL, context: int | None, ring: Ring, length: int) -> bool:
    """Put the tokens of layers with a window into the cells that are theirs; False where llama.cpp refuses."""
    state = write_sequence(native, context, abi.STATE_OF_THE_REST, _ALL)
    moved = None if state is None else rearranged(state, ring.positions(length))
    return moved is not None and read_rest(native, context, moved)
