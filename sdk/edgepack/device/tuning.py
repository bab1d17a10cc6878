"""What ``edgepack tune`` found on this device, kept in the state folder. ``edgepack.tuning.tune`` measures it.

A file belongs to one bundle on one device, and each of its entries to one version of an engine on one of its devices:
what was measured with others says nothing, and is not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from edgepack.bundle.writing import write_atomically
from edgepack.device.engine import Support
from edgepack.device.hardware import Hardware, most_threads
from edgepack.device.state import read_kept, state_folder

Count = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
Rate = Annotated[float, msgspec.Meta(gt=0)]
DRAFT_PAYS = 1.05
"""How many times as fast answers must be with a draft model for it to be loaded by itself: less may be noise."""

_MEMORY_STEP = 1 << 28  # the same machine reports some megabytes more or less after an update of its kernel


@dataclass(frozen=True, slots=True)
class Tuning:
    """The best settings of one variant here, and what they reach: rates are tokens per second.

    ``batch_cost`` is the time of a ``forward_all`` of four tokens in times of a ``forward`` of one: what it costs the
    engine to check a guess of three tokens. ``draft_gain`` is how many times as fast three quarters of answers come at
    least with the bundle's draft model, None without one.
    """

    variant: str
    threads: Count
    chunk: Count
    repack: bool | None
    decode_tps: Rate
    prefill_tps: Rate
    batch_cost: Rate
    draft_gain: Rate | None = None


class _Entry(msgspec.Struct, frozen=True):
    """A tuning, and the engine's version and device that it holds for."""

    engine: str | None
    device: str
    tuning: Tuning


def read_tunings(bundle_id: str, hardware: Hardware, supports: Mapping[str, Support]) -> dict[str, Tuning]:
    """Return what was measured on this device with the engines as they are now, by variant.

    ``supports`` maps a runtime's name to what it says of itself. Nothing, where this device was not tuned for the
    bundle or the file cannot be read.
    """
    try:
        entries = msgspec.json.decode(read_kept(_place(bundle_id, hardware)), type=dict[str, list[_Entry]])
    except (OSError, RuntimeError, ValueError, RecursionError):
        return {}
    return {
        entry.tuning.variant: entry.tuning
        for name, support in supports.items()
        for entry in entries.get(name, ())
        if (entry.engine, entry.device) == (support.version, support.devices[0] if support.devices else None)
        and entry.tuning.threads <= most_threads()
    }


def write_tunings(bundle_id: str, hardware: Hardware, tunings: Iterable[tuple[str, Support, Tuning]]) -> Path:
    """Replace what is known of a bundle on this device, and return the file: each tuning comes with the name of its
    runtime and with what that said of itself, or of another engine of it, when it was measured.

    Raises ``OSError``, or ``RuntimeError`` for a user without a home.
    """
    entries: dict[str, list[_Entry]] = {}
    for name, support, tuning in tunings:
        entries.setdefault(name, []).append(_Entry(support.version, support.devices[0], tuning))
    place = _place(bundle_id, hardware)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, msgspec.json.format(msgspec.json.encode(entries)))
    return place


def device_key(hardware: Hardware) -> str:
    """Return what is the same as long as measurements of this machine hold: a hash of its processor and what this
    process may use of it, its accelerators, and its memory."""
    facts = (
        hardware.system,
        hardware.machine,
        hardware.processor,
        hardware.physical_cores,
        hardware.affinity,
        hardware.quota,
        hardware.accelerators,
        hardware.gpus,
        round(hardware.memory_total / _MEMORY_STEP),
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _place(bundle_id: str, hardware: Hardware) -> Path:
    return state_folder() / "tuned" / f"{bundle_id}-{device_key(hardware)}.json"


def measured(tuning: Tuning) -> str:
    """Return what was measured, with its settings, as people read it."""
    threads = "1 thread" if tuning.threads == 1 else f"{tuning.threads} threads"
    repack = {None: "", True: ", weights repacked", False: ", weights as stored"}[tuning.repack]
    return f"measured {tuning.decode_tps:.1f} tok/s with {threads}, chunk {tuning.chunk}{repack}"
