"""Writes what a Python program does to the outside into the file that WATCHED names: a kind and a detail in each line.

Python imports a module of this name when it starts, and so does every interpreter that the program starts.
"""

from __future__ import annotations

import os
import sys
from typing import Any

LOG = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# What changes the file system, and which of its arguments are paths; the last is the open folder that they start from,
# or -1. Whatever shutil and tempfile do comes down to these.
CHANGES = {
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.link": (1,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.utime": (0,),
}
PROGRAMS = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen")


def note(event: str, args: tuple[Any, ...]) -> None:
    if event.startswith("socket."):
        tell("socket", event)
    elif event == "open" and not isinstance(args[0], int) and args[2] & WRITES:
        tell("write", place(args[0], -1))
    elif event in CHANGES:
        for index in CHANGES[event]:
            tell("write", place(args[index], args[-1]))
    elif event in PROGRAMS:
        tell("program", os.fsdecode(args[0]) if args else event)
    elif event == "ctypes.dlopen" and args[0] is not None:
        tell("library", os.fsdecode(args[0]))


def place(path: int | str | bytes, folder: int) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    start = os.getcwd() if folder < 0 else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.join(start, os.fsdecode(path))


def tell(kind: str, detail: str) -> None:
    os.write(LOG, f"{kind}\t{detail}\n".encode(errors="backslashreplace"))


sys.addaudithook(note)
