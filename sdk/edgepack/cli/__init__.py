"""The ``edgepack`` command. Whatever goes wrong leaves as one sentence on standard error and an exit code.

The codes are told in ``edgepack.cli.faults``. With ``--json``, standard output gets one document in any case: the
report, what went wrong under ``error``, or both.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from io import StringIO, TextIOWrapper

from edgepack.cli import reports, styles
from edgepack.cli.collector import resting
from edgepack.cli.interrupts import Interrupts
from edgepack.errors import EdgepackError, UsageError
from edgepack.extras import needed

DEBUG = "EDGEPACK_DEBUG"


def program() -> int:
    """Run ``main`` for a process that ends with it, as the ``edgepack`` script does."""
    code = main()
    gc.freeze()  # an interpreter that ends looks for garbage among all that it takes apart anyway
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (None: the process's) and return the exit code. Raises nothing unless EDGEPACK_DEBUG=1."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        _prepare_streams()
        _prepare_memory()
        with Interrupts():
            code = _invoke(words)
        reports.write()
        sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        _drop_output()
        return _told(error, words)
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get(DEBUG) == "1" and isinstance(error, Exception):
            raise
        if isinstance(error, OSError) and not isinstance(error, EdgepackError):
            _drop_output()
        return _told(error, words)
    finally:
        reports.forget()


def _invoke(argv: list[str]) -> int:
    with resting():
        try:
            from edgepack.cli.app import command_for
        except ImportError:
            with needed("The edgepack command", *(_extras_of(argv[:1]) or ["cli"])):
                raise
        command = command_for(argv)
    return command()


def _extras_of(words: list[str]) -> set[str]:
    """Return the extras that a command of edgepack's other packages says to need, which have those of "cli" in them."""
    commands = [each for each in entry_points(group="edgepack.commands") if each.name in words]
    return {extra for each in commands if each.dist and each.dist.name == "edgepack" for extra in each.extras}


def _told(error: BaseException, words: list[str]) -> int:
    """Tell what went wrong on standard error, and on standard output where that gets JSON; return the exit code."""
    from edgepack.cli.faults import fault_of

    fault = fault_of(error)
    sys.stderr.write(fault.lines(styles.allowed(sys.stderr), styles.columns(sys.stderr)))
    if sys.stdout is not None and "--json" in words[: words.index("--") if "--" in words else None]:
        try:
            reports.add({"error": asdict(fault)})
            reports.write()
            sys.stdout.flush()
        except OSError:
            _drop_output()
    return fault.exit_code


def _prepare_streams() -> None:
    """Let the standard streams take any text. Raises ``UsageError`` where standard output is closed."""
    if sys.stderr is None:
        sys.stderr = StringIO()
    if sys.stdout is None:
        raise UsageError("Standard output is closed.", hint="Send it to a file, or to /dev/null.")
    if isinstance(sys.stdout, TextIOWrapper):  # a test may have put another in its place
        sys.stdout.reconfigure(errors="replace")  # an old terminal lacks some characters, and shows the others


def _prepare_memory() -> None:
    """Make do with little address space, of which numpy takes a part for each core. Raises ``EdgepackError``."""
    from edgepack.device import addresses

    if found := addresses.left():
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        if found[0] < addresses.START:
            raise EdgepackError(
                f"The memory addresses of this process are limited to {found[1] >> 20} MiB (ulimit -v): too few.",
                hint="Raise that limit.",
            )


def _drop_output() -> None:
    """Make sure that what standard output could not take does not fail again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
