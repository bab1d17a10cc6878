"""A model of a disk: what of a record of file-system calls outlives a loss of power.

A file's data last only from a flush of the file on, and a name only from a flush of its folder on. What was not flushed
may be on the disk or not, each name and each file by itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

from traced import Call

Tree = dict[str, "Tree | int"]


class Node:
    """A file or a folder: what it is now, and what of it would outlive the power. A file's content is the number of
    changes to it, a folder's are the nodes by name. ``serial`` tells a node from others of the same disk."""

    def __init__(self, is_folder: bool, serial: int = 0) -> None:
        self.is_folder, self.serial = is_folder, serial
        self.names: dict[str, Node] = {}
        self.flushed: dict[str, Node] = {}
        self.changes = 0
        self.kept = 0

    def flush(self) -> None:
        self.flushed, self.kept = dict(self.names), self.changes

    def now(self) -> Tree | int:
        return {name: node.now() for name, node in self.names.items()} if self.is_folder else self.changes

    def lasting(self) -> Tree | int:
        return {name: node.lasting() for name, node in self.flushed.items()} if self.is_folder else self.kept


class Disk:
    """A disk below a folder that was there before; of all else it knows nothing."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Node(True)
        self._made = 0

    def _new(self, is_folder: bool) -> Node:
        self._made += 1
        return Node(is_folder, self._made)

    def find(self, path: str) -> tuple[Node, str] | None:
        """Return the folder of a path and the name in it, None for a path outside, or of the root itself."""
        if not Path(path).is_relative_to(self.root) or Path(path) == self.root:
            return None
        node = self.top
        *folders, name = Path(path).relative_to(self.root).parts
        for each in folders:
            if each not in node.names:
                return None
            node = node.names[each]
        return node, name

    def node(self, path: str) -> Node | None:
        if Path(path) == self.root:
            return self.top
        found = self.find(path)
        return found and found[0].names.get(found[1])

    def play(self, call: Call) -> None:
        """Do what a call did."""
        if call.returned.startswith("-1"):
            return
        paths = re.findall(r'"([^"]*)"', call.arguments)
        at = re.match(r"\d+<([^>]*)>", call.arguments)
        if call.name == "openat" and "O_CREAT" in call.arguments and (found := self.find(paths[0])):
            folder, name = found
            node = folder.names.setdefault(name, self._new(False))
            node.changes += 1
        elif call.name in ("link", "linkat") and (old := self.find(paths[0])) and (new := self.find(paths[1])):
            new[0].names[new[1]] = old[0].names[old[1]]
        elif call.name == "mkdir" and (found := self.find(paths[0])):
            found[0].names[found[1]] = self._new(True)
        elif call.name == "rename" and (old := self.find(paths[0])) and (new := self.find(paths[1])):
            new[0].names[new[1]] = old[0].names.pop(old[1])
        elif call.name in ("write", "pwrite64", "ftruncate", "fallocate") and at and (written := self.node(at[1])):
            written.changes += 1
        elif call.name == "fsync" and at and (flushed := self.node(at[1])):
            flushed.flush()
        elif call.name in ("unlink", "unlinkat", "rmdir") and paths:
            base = at[1] if at else ""
            if found := self.find(str(Path(base, paths[0]))):
                found[0].names.pop(found[1])


def after_a_cut(node: Node, chance: Random) -> dict[str, int | None]:
    """Return the files that are on the disk when the power is cut, by path: what was not flushed as chance has it.

    A file is its node's serial number, None where it is torn.
    """
    left: dict[str, int | None] = {}
    for name in sorted({*node.names, *node.flushed}):
        now, kept = node.names.get(name), node.flushed.get(name)
        there = now if now is kept or chance.random() < 0.5 else kept
        if there is None:
            continue
        if there.is_folder:
            left |= {f"{name}/{path}": file for path, file in after_a_cut(there, chance).items()}
        else:
            left[name] = there.serial if there.kept == there.changes else None
    return left


def files_now(node: Node) -> dict[str, int | None]:
    """Return the files below a folder as who reads it now sees them."""
    found: dict[str, int | None] = {}
    for name, each in node.names.items():
        if each.is_folder:
            found |= {f"{name}/{path}": file for path, file in files_now(each).items()}
        else:
            found[name] = each.serial
    return found
