"""Whether an engine computes with weights that it rearranged for the processor ("repack"), as ``repacking`` finds out
in a child process: an engine may compute well with weights as they are stored, and crash with its own form of them.

It is asked by the first load that would rearrange, and remembered until the library, this code or the machine changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgepack import threads
from edgepack.device.state import circumstances, recall, remember, stamps
from edgepack.errors import EngineCrashedError, EngineError, EngineMissingError
from edgepack.isolation import process
from edgepack_runtimes.gguf import library, log

_CHILD: Final = "edgepack_runtimes.gguf.repacking"
_TIMEOUT_S: Final = 60
_PASSING: Final = ("was killed (SIGKILL)", "ended by itself")
"""How a child ends that lacked something of the system, which tells nothing of the engine."""


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came of an engine's first steps with rearranged weights: None where they are right, else what is wrong.

    The field has no default, so that what another version remembered is no answer.
    """

    reason: str | None


_trials: dict[library.Engine, Trial] = {}
_lock = threads.lock()


def reason(engine: library.Engine) -> str | None:
    """Return why the engine's rearranged weights are not to be used here, a sentence; None where they work.

    The answer is found once per process, with a line in the log where it is a reason; it never raises.
    """
    with _lock:
        if engine not in _trials:
            found = _trials[engine] = _judge(engine)
            if found.reason:
                log.logger.warning("%s The weights stay as they are stored.", found.reason)
        return _trials[engine].reason


def risk(engine: library.Engine) -> None:
    """Let this process use the engine's rearranged weights without knowing: it is the child that finds out."""
    with _lock:
        _trials[engine] = Trial(None)


def _judge(engine: library.Engine) -> Trial:
    try:
        path = library.locate(engine)
    except EngineMissingError:  # bound from another place, which no child would find
        return Trial(None)
    question = f"rearranged weights of {engine.distribution}"
    now = circumstances(stamps([path, *Path(__file__).parent.glob("*.py")]))
    if known := recall(question, now, Trial):
        return known
    what = f"{engine.distribution} {engine.version} cannot be trusted with rearranged weights on this machine"
    if not process.can_start():
        return Trial(f"{what}: this program cannot start the interpreter that would try it.")
    try:
        answer = process.run("its trial", _CHILD, engine.distribution, timeout_s=_TIMEOUT_S)
        found = msgspec.json.decode(answer, type=Trial)
    except EngineCrashedError as error:
        found = Trial(f"{what}: {error.message}")
        if any(end in error.message for end in _PASSING):
            return found
    except EngineError as error:  # a timeout: the machine may have been busy
        return Trial(f"{what}: {error.message}")
    except (OSError, msgspec.DecodeError) as error:
        return Trial(f"{what}: its trial failed: {error}.")
    else:
        found = Trial(found.reason and f"{what}: {found.reason}")
    remember(question, now, msgspec.json.encode(found))
    return found
