"""``python -m edgepack``."""

import sys

from edgepack.cli import main

code = main()
# A Ctrl-C inside a string that an import executes marks the interpreter to die by SIGINT at its end, whoever caught it
# since; executing another string takes the mark away, so that the exit code is the one that ``main`` returned.
exec("")
sys.exit(code)
