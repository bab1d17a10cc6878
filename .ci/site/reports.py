"""What each command prints with ``--json``, as JSON Schemas that msgspec makes of the types which the commands report.

Where a command writes more than its type has, or puts several together, that is said here; ``tests/docs`` holds real
reports against these schemas, and finds what is missing or too much.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypedDict

import msgspec

import edgepack
from edgepack.bundle.manifest import Manifest
from edgepack.bundle.receipt import Receipt
from edgepack.device.engine import Engine
from edgepack.measuring.bench import BenchReport
from edgepack.measuring.compare import Comparison
from edgepack.measuring.doctor import DoctorReport
from edgepack.measuring.evaluate import EvalReport
from edgepack.measuring.rerun import Rerun
from edgepack.measuring.served import ServedReport
from edgepack.text.replay import Replay
from edgepack.trust.admitting import Signer
from edgepack.tuning.tune import TuneReport
from edgepack_packager.engine.build import Built as Compiled
from edgepack_packager.fit import Refusal, Row
from edgepack_packager.source.catalog import Entry
from edgepack_ship.diffing import Report as Difference
from edgepack_ship.exports.export import Exported
from edgepack_ship.kit.making import Kit
from edgepack_ship.mirroring import Mirror
from edgepack_ship.packing import Packed
from edgepack_ship.pushing import Pushed
from edgepack_ship.store.install import Installed
from edgepack_ship.store.listing import Entry as Listed
from edgepack_ship.store.names import Changed
from edgepack_ship.warming import Warmed


class Evaluations(TypedDict):
    """``edgepack eval``; ``left_out`` has the reason for each variant that could not be measured."""

    variants: list[EvalReport]
    left_out: dict[str, str]


class Qualities(TypedDict):
    """``edgepack quality``: the receipts of the bundles, each with the bundle's id and name."""

    bundles: list[Receipt]


class Verified(TypedDict):
    """``edgepack verify``: counts and bytes; ``foreign`` are the names of files that are not the bundle's, ``absent``
    the ids of variants that are not in this copy; ``signers`` vouch for it, by a key or a policy that was asked."""

    id: str
    name: str
    files: int
    bytes: int
    foreign: list[str]
    absent: list[str]
    signed: bool
    signers: list[Signer]
    replays: list[Replay]


class KeyPair(TypedDict):
    """``edgepack keygen``: the files of the keys; ``fingerprint`` is the sha256 of the public one's PEM."""

    private: str
    public: str
    type: str
    fingerprint: str
    encrypted: bool


class Signed(TypedDict):
    """``edgepack sign``: the bundle's id, the file of the signature, and the key that made it."""

    id: str
    signature: str
    type: str
    fingerprint: str


class Unpacked(TypedDict):
    """``edgepack unpack``: the folder, and the ids of the variants that it holds and of those that were left out."""

    path: str
    id: str
    variants: list[str]
    absent: list[str]


class Shelf(TypedDict):
    """``edgepack list``: the bundles of the stores."""

    bundles: list[Listed]


class Tool(TypedDict):
    """A package or an engine: its version when the bundle was built, and here; None where it took no part."""

    recorded: str | None
    here: str | None


class Again(TypedDict):
    """``edgepack rebuild``: the ids of the bundle and of what was built again, the names of the files that are not the
    same, and the tools whose versions are not, by name."""

    path: str
    verdict: Literal["same", "differs"]
    id: str
    rebuilt: str
    differing: list[str]
    tools: dict[str, Tool]


class Freed(TypedDict):
    """``edgepack remove`` and ``edgepack gc``: the bytes that are free now."""

    freed: int


class Engines(TypedDict):
    """``edgepack engine list``: best first; ``preferred`` is the name that was asked for, None where none was."""

    engines: list[Engine]
    preferred: str | None


class Models(TypedDict):
    """``edgepack models``."""

    models: list[Entry]


class Place(TypedDict):
    """The device that was asked about; ``memory`` in bytes, and where that figure comes from."""

    name: str
    memory: int
    basis: str


class Fitting(TypedDict):
    """``edgepack fit``: the variant to choose and the command that builds it, None where nothing fits."""

    model: str
    parameters: int
    context: int
    trained_context: int
    device: Place
    fits: bool
    choice: str | None
    command: str | None
    variants: list[Row]
    refused: list[Refusal]


_TEXT, _YES, _COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
_MANIFEST = {
    "Manifest": {
        "id": _TEXT,
        "absent": {"type": "array", "items": _TEXT},
        "draft": {"anyOf": [{"$ref": "#/$defs/Manifest"}, {"type": "null"}]},
        "receipt": {"anyOf": [{"$ref": "#/$defs/Receipt"}, {"type": "null"}]},
    },
    "Variant": {"proven": _YES},
}

_WRITTEN = {**_MANIFEST, "Manifest": {**_MANIFEST["Manifest"], "path": _TEXT}}

REPORTS: Mapping[str, tuple[Any, Mapping[str, Mapping[str, Any]]]] = {
    "run": (edgepack.Result, {"ToolCall": {"coerced": {"type": "object"}}}),
    "replay": (Rerun, {"ToolCall": {"coerced": {"type": "object"}}}),
    "inspect": (Manifest, _MANIFEST),
    "build": (Manifest, _WRITTEN),
    "add": (Manifest, _WRITTEN),
    "rebuild": (Again, {}),
    "pull": (Manifest, _WRITTEN),
    "push": (Pushed, {}),
    "diff": (Difference, {}),
    "patch": (Manifest, _WRITTEN),
    "mirror": (Mirror, {}),
    "quality": (Qualities, {"Receipt": {"id": _TEXT, "name": _TEXT}, "Measured": {"bytes": _COUNT}}),
    "verify": (Verified, {}),
    "keygen": (KeyPair, {}),
    "sign": (Signed, {}),
    "warm": (Warmed, {}),
    "split": (Manifest, _WRITTEN),
    "install": (Installed, {}),
    "list": (Shelf, {}),
    "use": (Changed, {}),
    "rollback": (Changed, {}),
    "remove": (Freed, {}),
    "gc": (Freed, {}),
    "kit": (Kit, {}),
    "export": (Exported, {}),
    "pack": (Packed, {}),
    "unpack": (Unpacked, {}),
    "plan": (edgepack.Plan, {"Candidate": {"eligible": _YES}, "Memory": {"total": _COUNT}}),
    "bench": (BenchReport, {}),
    "tune": (TuneReport, {}),
    "eval": (Evaluations, {}),
    "compare": (Comparison, {"Comparison": {"identical": _COUNT}}),
    "doctor": (DoctorReport, {}),
    "engine build": (Compiled, {"Built": {"used": {"anyOf": [_YES, {"type": "null"}]}}}),
    "engine list": (Engines, {}),
    "models": (Models, {}),
    "fit": (Fitting, {"Row": {"variant": _TEXT, "fits": _YES}, "Memory": {"total": _COUNT}}),
}
"""The type of each report, and by class the fields that the command adds to it."""


def schema_of(command: str) -> dict[str, Any]:
    """Return the JSON Schema of a command's report. Objects whose type is known have no other fields than those."""
    kind, added = REPORTS[command]
    _annotate()
    schema = msgspec.json.schema(kind, schema_hook=_other)
    if kind is Manifest:  # with which a bundle's receipt is shown
        schema["$defs"].update(msgspec.json.schema(Receipt)["$defs"])
    if kind is BenchReport:  # or of a server
        other = msgspec.json.schema(ServedReport, schema_hook=_other)
        schema = {
            "anyOf": [{"$ref": each["$ref"]} for each in (schema, other)],
            "$defs": schema["$defs"] | other["$defs"],
        }
    for name, found in schema.get("$defs", {}).items():
        if "description" in found:
            found["description"] = inspect.cleandoc(found["description"])
        if "properties" in found:
            found["properties"].update(added.get(name, {}))
            found["additionalProperties"] = False
    return schema


def _other(kind: Any) -> dict[str, Any]:
    return _TEXT if isinstance(kind, type) and issubclass(kind, Path) else {"description": "any JSON value"}


def _annotate() -> None:
    """Import what edgepack's modules import for type checkers alone, so that their annotations can be read."""
    done: set[str] = set()
    while missing := [name for name in sorted(sys.modules) if name.startswith("edgepack.") and name not in done]:
        for name in missing:
            done.add(name)
            module = sys.modules[name]
            for block in _checked(module):
                exec(compile(ast.Module(block.body, []), name, "exec"), vars(module))


def _checked(module: ModuleType) -> Iterator[ast.If]:
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield node
