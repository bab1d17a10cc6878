"""edgepack: run a packed language model on whichever engine suits the machine.

``load`` a bundle and ``generate``; ``plan`` says what ``load`` would choose and why. Importing this package imports
no engine, no tokenizer and no command line: each name is fetched when it is first used.

Where things are, from the ground up: ``errors``; ``bundle`` (what is on disk); ``device`` (its facts, and the plans
that follow from them); ``runtime``, the seam that engines stand behind, and ``snapshot``, the form of their saved
caches; ``isolation`` (engines in processes of their own) and ``text`` (tokens, templates, tools); ``structured``
(answers bound to a schema); ``decoding`` (one token after another); ``conversation`` and ``model``; ``engines`` (found
and opened), ``loading`` (from a bundle to a model); ``measuring`` (speed, quality, sameness), ``tuning`` (the best
settings here) and ``cli``. A room knows only what stands below it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.asynchronous import aload as aload
    from edgepack.bundle.files import Bundle as Bundle
    from edgepack.bundle.files import open_bundle as open_bundle
    from edgepack.conversation import Conversation as Conversation
    from edgepack.decoding.results import Chunk as Chunk
    from edgepack.decoding.results import Result as Result
    from edgepack.device.planning import Plan as Plan
    from edgepack.errors import BuildError as BuildError
    from edgepack.errors import BundleDamagedError as BundleDamagedError
    from edgepack.errors import BundleError as BundleError
    from edgepack.errors import BundleNotFoundError as BundleNotFoundError
    from edgepack.errors import BundleTooNewError as BundleTooNewError
    from edgepack.errors import Cancelled as Cancelled
    from edgepack.errors import ContextError as ContextError
    from edgepack.errors import ContextTooLargeError as ContextTooLargeError
    from edgepack.errors import EdgepackError as EdgepackError
    from edgepack.errors import EngineCrashedError as EngineCrashedError
    from edgepack.errors import EngineError as EngineError
    from edgepack.errors import EngineMissingError as EngineMissingError
    from edgepack.errors import EngineTimeoutError as EngineTimeoutError
    from edgepack.errors import ExtraMissingError as ExtraMissingError
    from edgepack.errors import LicenceError as LicenceError
    from edgepack.errors import OutputExistsError as OutputExistsError
    from edgepack.errors import PromptTooLongError as PromptTooLongError
    from edgepack.errors import ProofError as ProofError
    from edgepack.errors import ReplayError as ReplayError
    from edgepack.errors import SchemaError as SchemaError
    from edgepack.errors import SourceError as SourceError
    from edgepack.errors import ToolCallError as ToolCallError
    from edgepack.errors import UnknownOptionError as UnknownOptionError
    from edgepack.errors import UnsupportedModelError as UnsupportedModelError
    from edgepack.errors import UsageError as UsageError
    from edgepack.fake import FakeRuntime as FakeRuntime
    from edgepack.loading import load as load
    from edgepack.loading import plan as plan
    from edgepack.model import Model as Model

    __version__: str

_HOME = {
    "Bundle": "bundle.files",
    "open_bundle": "bundle.files",
    "Conversation": "conversation",
    "FakeRuntime": "fake",
    "aload": "asynchronous",
    "load": "loading",
    "plan": "loading",
    "Model": "model",
    "Plan": "device.planning",
    "Chunk": "decoding.results",
    "Result": "decoding.results",
    **dict.fromkeys(
        (
            "BuildError",
            "BundleDamagedError",
            "BundleError",
            "BundleNotFoundError",
            "BundleTooNewError",
            "Cancelled",
            "ContextError",
            "ContextTooLargeError",
            "EdgepackError",
            "EngineError",
            "EngineCrashedError",
            "EngineMissingError",
            "EngineTimeoutError",
            "ExtraMissingError",
            "LicenceError",
            "OutputExistsError",
            "PromptTooLongError",
            "ProofError",
            "ReplayError",
            "SchemaError",
            "SourceError",
            "ToolCallError",
            "UnknownOptionError",
            "UnsupportedModelError",
            "UsageError",
        ),
        "errors",
    ),
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("edgepack")
    if name not in _HOME:
        raise AttributeError(f"module 'edgepack' has no attribute {name!r}")
    found: object = getattr(import_module(f"edgepack.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
