"""What an engine offers on a device, and how a plan has it open a variant: the plain data of ``edgepack.runtime``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgepack.bundle.decoder import KvCache


@dataclass(frozen=True, slots=True)
class Rate:
    """What an engine takes for one weight and one token, in seconds: in a prompt, of which it evaluates ``CHUNK``
    tokens in a step, and in an answer, of which it evaluates one, so that the weights come from memory each time."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast an engine multiplies on this machine's CPU with so many threads, from products of its own.

    ``rates`` are those of matrices by the name of a scheme or of an element type, as manifests have them; those of
    what makes the logits, where a scheme stores it otherwise, by the scheme's name and ".head"; that of a value of a
    query with one before it, in the cache, by "attention". ``layer`` are the seconds of a layer beside its products:
    of a token in a prompt, and of a step of an answer. ``settled`` says that no other program disturbed, and that all
    was found twice; ``tries`` counts the measurements of which this is the best.
    """

    threads: int
    rates: Mapping[str, Rate]
    layer: Rate
    settled: bool = True
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a runtime can run on a machine.

    ``devices`` names what it can use, best first ("metal", "cuda", "cpu"); empty means that it cannot run,
    ``reason`` says why in one sentence, and ``install`` is the command that would change it, if there is one.
    ``better`` is the command that gives the runtime a faster engine for this machine than the one that it has.
    ``version`` is the engine's own, by which a variant says what it needs; ``package`` is the distribution that it came
    in, with that one's version, which is what people install ("xllamacpp 2026.10.11549"). ``kv_caches`` lists the cache
    types it offers here, for variants that have none built in; ``needs`` names the only type that a device takes, for
    devices that do not take every one. ``speed`` is what was measured of it on the CPU, where it can be measured and
    remembered. ``code`` are the bytes that this engine and what its process loads beside it take whatever the model is,
    where they are not those that ``memory`` knows of the runtime.
    """

    devices: tuple[str, ...]
    reason: str | None = None
    install: str | None = None
    version: str | None = None
    kv_caches: tuple[KvCache, ...] = ("f32",)
    needs: Mapping[str, KvCache] = field(default_factory=dict)
    better: str | None = None
    speed: Speed | None = None
    package: str | None = None
    code: int | None = None

    def device(self, kv_cache: KvCache) -> str | None:
        """Return the best device that takes a KV cache of that type."""
        return next((name for name in self.devices if self.needs.get(name, kv_cache) == kv_cache), None)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine of a runtime that has several: ``name`` is its distribution, of which ``installed`` is the version that
    is there, or None. ``devices`` and ``reason`` are as in ``Support``; ``used`` marks the one that the runtime takes.
    """

    name: str
    installed: str | None
    version: str | None
    devices: tuple[str, ...]
    reason: str | None
    used: bool

    @property
    def variant(self) -> str:
        """The variant for this processor that an engine of several took, else ""."""
        return variant(self.installed or "", self.version or "")


@dataclass(frozen=True, slots=True)
class Options:
    """How to open a variant: ``context`` in tokens, ``threads`` of the engine, the KV cache's element type, and
    ``chunk``, the most tokens that one prefill step evaluates (a cancel takes effect between steps or sooner).

    ``repack`` says whether the engine rearranges the weights for this processor at load, None that it decides itself;
    a runtime that cannot choose raises ``UsageError`` for anything else. ``spin`` says the same of the engine's threads
    that wait for others: to spin, or to sleep; None: the runtime follows what its steps cost. ``sequences`` are the
    texts that the session holds at a time, of ``context`` tokens each; for more than one it is a ``runtime.Sequences``.
    """

    context: int
    threads: int
    kv_cache: KvCache
    chunk: int = 128
    repack: bool | None = None
    spin: bool | None = None
    sequences: int = 1


def variant(installed: str, version: str) -> str:
    """Return what the version of a loaded engine has after the build that is installed: "0.3.36+x86.64.g1a2b3c4d" and
    "0.5.0-dev+x86.64.g1a2b3c4d.zen4" give "zen4"; else ""."""
    _, _, build = installed.partition("+")
    return version.partition(f"+{build}.")[2] if build else ""


def older(version: str | None, floor: str) -> bool:
    """Say whether a version is before another: "1.27.1" before "1.28". What has no number is not."""
    found, needed = _numbers(version or ""), _numbers(floor)
    # 1 and 1.0 are the same version.
    length = max(len(found), len(needed))
    return bool(found and needed) and found + (0,) * (length - len(found)) < needed + (0,) * (length - len(needed))


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"[0-9]{1,18}(\.[0-9]{1,18})*(?![0-9.])", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
