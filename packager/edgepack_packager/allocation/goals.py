"""What an allocation is for: mean bits a weight, a size, a device, or a loss. Each is one word of a quantisation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgepack.bundle.decoder import Decoder
from edgepack.device.limits import default_kv_cache
from edgepack.device.memory import human
from edgepack.errors import UnsupportedModelError, UsageError
from edgepack_packager import targets
from edgepack_packager.fit import memory
from edgepack_packager.fit.devices import DEVICES, Device, find, read_memory
from edgepack_packager.targets import Request, Written

AUTO = "auto"
"""The goal of the fewest bytes that lose no more than the build's limit."""

_BITS = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,3})?)bits")
_SIZE = re.compile(r"[0-9.]+ ?[kmgt]i?b", re.IGNORECASE)


class Goal(Protocol):
    """A limit that a variant must keep; within it, its allocation loses as little as it can."""

    @property
    def name(self) -> str:
        """What its variants are called behind their target: "4.5bits", "900mb", "pi5-4gb"."""
        ...

    def holds(self, written: Written, request: Request, decoder: Decoder) -> bool:
        """Say whether a variant of these sizes keeps it."""
        ...

    def told(self, written: Written, request: Request, decoder: Decoder) -> str:
        """Say what a variant of these sizes has of what it limits, as the end of a sentence."""
        ...


@dataclass(frozen=True, slots=True)
class Bits:
    """So many bits a weight on average, scales included."""

    name: str
    bits: float

    def holds(self, written: Written, request: Request, decoder: Decoder) -> bool:
        """Compare all tensors with the parameters."""
        return 8 * written.tensor_bytes <= self.bits * decoder.n_parameters

    def told(self, written: Written, request: Request, decoder: Decoder) -> str:
        """Say how many bits a weight has."""
        return f"{8 * written.tensor_bytes / decoder.n_parameters:.2f} bits a weight"


@dataclass(frozen=True, slots=True)
class Size:
    """So many bytes of the weights' files, as ``Written.data_bytes`` counts them."""

    name: str
    bytes: int

    def holds(self, written: Written, request: Request, decoder: Decoder) -> bool:
        """Compare the files' data."""
        return written.data_bytes <= self.bytes

    def told(self, written: Written, request: Request, decoder: Decoder) -> str:
        """Say how large the files are."""
        return f"{written.data_bytes / 1e6:.1f} MB"


@dataclass(frozen=True, slots=True)
class Fits:
    """The memory that a device leaves to a model: weights, the KV cache of the context, the engine and its buffers."""

    device: Device

    @property
    def name(self) -> str:
        """The device's."""
        return self.device.name

    def holds(self, written: Written, request: Request, decoder: Decoder) -> bool:
        """Compare what the plan would need there with what is there."""
        return self._needed(written, request, decoder) <= self.device.memory

    def told(self, written: Written, request: Request, decoder: Decoder) -> str:
        """Say how much memory it needs at its context."""
        return f"{human(self._needed(written, request, decoder))} at a context of {decoder.context}"

    def _needed(self, written: Written, request: Request, decoder: Decoder) -> int:
        target = request.target
        if target.runtime not in self.device.engines:
            raise UnsupportedModelError(
                f"No engine serves {target.name} on {self.name}.", hint="Leave the target out, or take another device."
            )
        kv_cache = target.kv_cache or default_kv_cache(request.scheme, self.device.engines[target.runtime])
        return memory(target, request.scheme, decoder, written, kv_cache, self.device).total


@dataclass(frozen=True, slots=True)
class Least:
    """The fewest bytes that lose no more than ``kl`` nats."""

    kl: float

    @property
    def name(self) -> str:
        """Its limit."""
        return f"kl{self.kl:g}"

    def holds(self, written: Written, request: Request, decoder: Decoder) -> bool:
        """Say yes: of sizes it limits none."""
        return True

    def told(self, written: Written, request: Request, decoder: Decoder) -> str:
        """Say how many bits a weight has."""
        return f"{8 * written.tensor_bytes / decoder.n_parameters:.2f} bits a weight"


def read(text: str, max_kl: float | None = None) -> Goal | None:
    """Return the goal that a quantisation names, None where it names none.

    Raises ``UsageError`` for one that nothing can meet, and for ``AUTO`` without a limit.
    """
    word = text.strip().lower()
    if word == AUTO:
        if max_kl is None:
            raise UsageError(
                "-q auto chooses the fewest bytes that lose no more than a limit, and none was given.",
                hint="Give it one: --max-kl 0.03, in nats.",
            )
        return Least(max_kl)
    if found := _BITS.fullmatch(word):
        return Bits(f"{float(found[1]):g}bits", float(found[1]))
    if _SIZE.fullmatch(word):
        return Size(word.replace(" ", ""), read_memory(_as_written(word)))
    return Fits(find(word)) if word in DEVICES else None


def of_fit(text: str) -> str:
    """Return the quantisation that ``--fit`` means, which is a size or a device. Raises ``UsageError`` for others."""
    word = text.rpartition(":")[2].strip().lower()
    if word not in DEVICES and not _SIZE.fullmatch(word):
        raise UsageError(
            f"--fit {text} is neither a size nor a device.",
            hint=f"Write a size as 900MB or 1.5GiB, or name one of: {', '.join(DEVICES)}.",
        )
    return text


def served(quants: Sequence[str]) -> list[str]:
    """Return the targets with an engine on every device among goals, none where there is no device among them."""
    devices = [DEVICES[quant.lower()] for quant in quants if quant.lower() in DEVICES]
    found = targets.names() if devices else []
    return [name for name in found if all(targets.find(name).runtime in device.engines for device in devices)]


def _as_written(word: str) -> str:
    """Return a size with its unit as ``read_memory`` spells it: "900MB", "1.5GiB"."""
    return word[:-2].upper() + ("iB" if word.endswith("ib") else word[-2:].upper())
