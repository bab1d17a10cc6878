"""``python -m edgepack``."""

import sys

from edgepack.cli import program

code = program()
# A Ctrl-C inside a string that an import executes marks the interpreter to die by SIGINT at its end, whoever caught it
# since; executing another string takes the mark away, so that the exit code is the one that ``program`` returned.
exec("")
sys.exit(code)
