"""The ``edgepack`` command. Whatever goes wrong leaves as one sentence on standard error and an exit code.

0 is success, 1 a failure, 2 a command that makes no sense, 130 an interrupt.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from io import StringIO, TextIOWrapper

from edgepack.cli.collector import resting
from edgepack.cli.interrupts import Interrupts
from edgepack.errors import EdgepackError, UsageError, visible, without_secrets
from edgepack.extras import needed

DEBUG = "EDGEPACK_DEBUG"


def program() -> int:
    """Run ``main`` for a process that ends with it, as the ``edgepack`` script does."""
    code = main()
    gc.freeze()  # an interpreter that ends looks for garbage among all that it takes apart anyway
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (None: the process's) and return the exit code. Raises nothing unless EDGEPACK_DEBUG=1."""
    try:
        _prepare_streams()
        _prepare_memory()
        with Interrupts():
            code = _invoke(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()
        return 1
    except EdgepackError as error:
        return _say(error.message, error.hint, 2 if isinstance(error, UsageError) else 1, error)
    except OSError as error:
        _drop_output()
        name = f": {error.filename}" if error.filename else ""
        return _say(f"The system refused: {error.strerror or error}{name}.", None, 1, error)
    except MemoryError as error:
        return _say("The memory ran out.", "Ask for a smaller --context or --variant.", 1, error)
    except Exception as error:
        if (say := getattr(error, "format_message", None)) is not None:
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else "edgepack"
            return _say(say().rstrip(".") + ".", f"See: {path} --help", 2, error)
        hint = f"This is a fault of edgepack; {DEBUG}=1 shows where."
        return _say(f"internal error: {type(error).__name__}: {error}", hint, 1, error)


def _invoke(argv: list[str]) -> int:
    with resting():
        with needed("The edgepack command", "cli"):
            from edgepack.cli.app import app_for

        app = app_for(argv)
    try:
        outcome = app(args=argv, prog_name="edgepack", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return outcome if isinstance(outcome, int) else 0


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


def _say(message: str, hint: str | None, code: int, error: BaseException) -> int:
    if os.environ.get(DEBUG) == "1":
        raise error
    red, bold, plain = ("\033[31m", "\033[1m", "\033[0m") if _colored() else ("", "", "")
    lines = [f"{bold}{red}error:{plain} {visible(without_secrets(message))}"]
    if hint:
        lines.append(f"{bold}hint:{plain} {visible(without_secrets(hint))}")
    print(*lines, sep="\n", file=sys.stderr)
    return code


def _colored() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _drop_output() -> None:
    """Make sure that what standard output could not take does not fail again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
