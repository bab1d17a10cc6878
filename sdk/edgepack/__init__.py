"""edgepack: run a packed language model on whichever engine suits the machine.

``load`` a bundle and ``generate``; ``plan`` says what ``load`` would choose and why. Importing this package imports
no engine, no tokenizer and no command line: each name is fetched when it is first used.

Where things are, from the ground up: ``errors``; ``bundle`` (what is on disk); ``device`` (its facts, and the plans
that follow from them); ``runtime``, the seam that engines stand behind, and ``snapshot``, the form of their saved
caches; ``isolation`` (engines in processes of their own) and ``text`` (tokens, templates, tools); ``structured``
(answers bound to a schema); ``decoding`` (one token after another); ``conversation`` and ``model``; ``engines`` (found
and opened), ``loading`` (from a bundle to a model); ``language_model`` and ``connecting`` (the same calls here and on a
server); ``measuring`` (speed, quality, sameness), ``tuning`` (the best
settings here) and ``cli``. A room knows only what stands below it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.asynchronous import aload as aload
    from edgepack.bundle.files import Bundle as Bundle
    from edgepack.bundle.files import open_bundle as open_bundle
    from edgepack.bundle.manifest import Manifest as Manifest
    from edgepack.bundle.manifest import Variant as Variant
    from edgepack.connecting import aconnect as aconnect
    from edgepack.connecting import aopen as aopen
    from edgepack.connecting import connect as connect
    from edgepack.connecting import open as open
    from edgepack.conversation import Conversation as Conversation
    from edgepack.decoding.logprobs import Alternative as Alternative
    from edgepack.decoding.logprobs import TokenLogprob as TokenLogprob
    from edgepack.decoding.options import ChatOptions as ChatOptions
    from edgepack.decoding.options import GenerationOptions as GenerationOptions
    from edgepack.decoding.options import Tool as Tool
    from edgepack.decoding.repro import Repro as Repro
    from edgepack.decoding.repro import Setup as Setup
    from edgepack.decoding.results import Chunk as Chunk
    from edgepack.decoding.results import FinishReason as FinishReason
    from edgepack.decoding.results import Result as Result
    from edgepack.decoding.results import Timings as Timings
    from edgepack.decoding.results import Usage as Usage
    from edgepack.decoding.sample import Sampling as Sampling
    from edgepack.decoding.score import Score as Score
    from edgepack.decoding.stream import AsyncStream as AsyncStream
    from edgepack.decoding.stream import Stream as Stream
    from edgepack.device.drafts import Draft as Draft
    from edgepack.device.memory import Memory as Memory
    from edgepack.device.planning import Candidate as Candidate
    from edgepack.device.planning import Plan as Plan
    from edgepack.device.seconds import Seconds as Seconds
    from edgepack.device.seconds import Turn as Turn
    from edgepack.device.tuning import Tuning as Tuning
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
    from edgepack.errors import StoreError as StoreError
    from edgepack.errors import ToolCallError as ToolCallError
    from edgepack.errors import TransferError as TransferError
    from edgepack.errors import TrustError as TrustError
    from edgepack.errors import UnknownOptionError as UnknownOptionError
    from edgepack.errors import UnsupportedModelError as UnsupportedModelError
    from edgepack.errors import UsageError as UsageError
    from edgepack.fake import FakeRuntime as FakeRuntime
    from edgepack.language_model import AnswerStream as AnswerStream
    from edgepack.language_model import AsyncAnswerStream as AsyncAnswerStream
    from edgepack.language_model import Dialogue as Dialogue
    from edgepack.language_model import LanguageModel as LanguageModel
    from edgepack.language_model import Served as Served
    from edgepack.loading import LoadOptions as LoadOptions
    from edgepack.loading import load as load
    from edgepack.loading import plan as plan
    from edgepack.model import Model as Model
    from edgepack.text.chat import ChatTemplate as ChatTemplate
    from edgepack.text.prompts import Messages as Messages
    from edgepack.text.tokenizer import Tokenizer as Tokenizer
    from edgepack.text.tools import ToolCall as ToolCall

    __version__: str

_NAMES = {
    "asynchronous": ("aload",),
    "bundle.files": ("Bundle", "open_bundle"),
    "bundle.manifest": ("Manifest", "Variant"),
    "connecting": ("aconnect", "aopen", "connect", "open"),
    "conversation": ("Conversation",),
    "decoding.logprobs": ("Alternative", "TokenLogprob"),
    "decoding.options": ("ChatOptions", "GenerationOptions", "Tool"),
    "decoding.repro": ("Repro", "Setup"),
    "decoding.results": ("Chunk", "FinishReason", "Result", "Timings", "Usage"),
    "decoding.sample": ("Sampling",),
    "decoding.score": ("Score",),
    "decoding.stream": ("AsyncStream", "Stream"),
    "device.drafts": ("Draft",),
    "device.memory": ("Memory",),
    "device.planning": ("Candidate", "Plan"),
    "device.seconds": ("Seconds", "Turn"),
    "device.tuning": ("Tuning",),
    "errors": (
        "BuildError",
        "BundleDamagedError",
        "BundleError",
        "BundleNotFoundError",
        "BundleTooNewError",
        "StoreError",
        "TransferError",
        "TrustError",
        "Cancelled",
        "ContextError",
        "ContextTooLargeError",
        "EdgepackError",
        "EngineCrashedError",
        "EngineError",
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
    "fake": ("FakeRuntime",),
    "language_model": ("AnswerStream", "AsyncAnswerStream", "Dialogue", "LanguageModel", "Served"),
    "loading": ("LoadOptions", "load", "plan"),
    "model": ("Model",),
    "text.chat": ("ChatTemplate",),
    "text.prompts": ("Messages",),
    "text.tokenizer": ("Tokenizer",),
    "text.tools": ("ToolCall",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


if not TYPE_CHECKING:  # to which every name would be an attribute

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
