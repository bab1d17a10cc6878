"""Where each tensor lies in a GGUF file: names, order, types, offsets. Computed from a decoder's shapes alone.

Source of the names: llama.cpp's ``llama`` architecture (gguf-py's tensor_mapping.py); of the placement: the GGUF
specification (ggml's docs/gguf.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.decoder import Decoder, Llama3Scaling
from edgepack.errors import UnsupportedModelError
from edgepack.manifest import Fallback
from edgepack_packager.targets import Written
from edgepack_packager.targets.gguf.recipe import FORMATS, Kind, choices

ALIGNMENT = 32

ROPE_FACTORS = "rope_freqs.weight"

_ROOTS = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
_BLOCKS = {
    "attention.norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "mlp.norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in the file: its GGUF name, shape with the rows first, type, and place relative to the data's start."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; of a vector, of an element."""
        return FORMATS[self.kind].row_bytes(self.shape[1] if len(self.shape) == 2 else 1)

    @property
    def size(self) -> int:
        """Bytes, without the padding that follows."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """All tensors in the order of the file, those of the decoder by canonical name, and those that fell back."""

    tensors: tuple[Tensor, ...]
    canonical: dict[str, Tensor]
    fallbacks: tuple[Fallback, ...]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def written(self) -> Written:
        """What a writer of this layout reports; llama.cpp keeps the tensors as they are in the file."""
        return Written(self.data_bytes, self.tensor_bytes, self.tensor_bytes, self.fallbacks)

    @property
    def data_bytes(self) -> int:
        """Bytes of the file's data section, padding included."""
        last = self.tensors[-1]
        return padded(last.offset + last.size)


def place(decoder: Decoder, scheme: str) -> Layout:
    """Lay out a decoder's tensors under a scheme. Pure, and quick: shapes and types are all that it reads.

    Raises ``UnsupportedModelError`` for a tensor that the architecture does not have.
    """
    tensors: list[Tensor] = []
    canonical: dict[str, Tensor] = {}
    fallbacks: list[Fallback] = []
    offset = 0

    def add(name: str, shape: tuple[int, ...], kind: Kind) -> Tensor:
        nonlocal offset
        tensor = Tensor(name, shape, kind, offset)
        tensors.append(tensor)
        offset = padded(offset + tensor.size)
        return tensor

    if isinstance(decoder.ropes[0].scaling, Llama3Scaling):
        add(ROPE_FACTORS, (decoder.ropes[0].dim // 2,), "f32")
    for choice in choices(decoder, scheme):
        canonical[choice.tensor] = add(gguf_name(choice.tensor), choice.shape, choice.kind)
        if choice.fallback:
            fallbacks.append(choice.fallback)
    return Layout(tuple(tensors), canonical, tuple(fallbacks))


def gguf_name(canonical: str) -> str:
    """Return the GGUF name of a canonical tensor, such as "blk.3.attn_q.bias" of "layers.3.attention.q.bias"."""
    stem, suffix = (canonical[:-5], "bias") if canonical.endswith(".bias") else (canonical, "weight")
    if stem in _ROOTS:
        return f"{_ROOTS[stem]}.{suffix}"
    _, _, within = stem.partition(".")
    layer, _, role = within.partition(".")
    if role not in _BLOCKS:
        raise UnsupportedModelError(f"GGUF's llama architecture has no place for the tensor {canonical}.")
    return f"blk.{layer}.{_BLOCKS[role]}.{suffix}"


def is_rotated(canonical: str) -> bool:
    """Whether a tensor's rows are rotated by position: GGUF interleaves the two halves of each of its heads."""
    return canonical.removesuffix(".bias").endswith(("attention.q", "attention.k"))


def padded(size: int) -> int:
    """Round up to the file's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
