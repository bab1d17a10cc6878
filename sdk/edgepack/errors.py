"""Every error that edgepack raises, in one tree::

EdgepackError
├── UsageError (ValueError)              an argument that cannot be honoured: unknown target, quantisation, value
│   ├── UnknownOptionError (TypeError)   a keyword that nothing here knows
│   └── SchemaError                      a schema, regex, grammar or tool that cannot bind an answer
├── SourceError (ValueError)             the model to convert is missing, damaged or inconsistent
│   └── UnsupportedModelError            an architecture or a feature that edgepack does not build yet
├── BuildError                           a build that could not be finished; nothing was left behind
│   ├── OutputExistsError (FileExistsError)
│   ├── LicenceError                     the licence asks for what the build was not given
│   └── ProofError                       a gate failed: a variant would not have been the same model
├── BundleError (ValueError)             a bundle that is missing, damaged or newer than this edgepack
│   ├── BundleNotFoundError (FileNotFoundError)
│   ├── BundleDamagedError
│   ├── BundleTooNewError
│   ├── TrustError                       a signature or a policy refuses a bundle
│   ├── StoreError                       a store of installed bundles cannot be read or written
│   ├── TransferError                    a registry or a web folder did not give, or take, what it should
│   └── ReplayError                      the bundle's vectors give something else with this machine's libraries
├── ExtraMissingError (ImportError)      packages that an extra brings, and that this install was not given
├── EngineError (RuntimeError)           an engine that failed
│   ├── EngineMissingError               not installed, or no installed engine can run the bundle here
│   ├── EngineCrashedError               the process of an isolated engine ended
│   ├── EngineTimeoutError (TimeoutError)  an isolated engine did not answer in time
│   └── Cancelled                        the caller asked a session to stop
├── ToolCallError (ValueError)           an answer that begins a tool call and is no valid one
└── ContextError (ValueError)            the tokens or the memory do not fit
    ├── ContextTooLargeError             the context asked for exceeds memory or what was verified
    └── PromptTooLongError               the prompt exceeds the context that was loaded
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

# Control characters, the marks that turn the direction of a text, line ends of Unicode, and halves of surrogate pairs.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LINES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_USER = re.compile(r"(://)[^\s/]+@")
_BEARER = re.compile(r"((?:authorization['\"]?[:=] *['\"]?(?:basic|bearer)|\bbearer) +)[\w.~+/=-]{8,}", re.I)
_TOKEN = re.compile(r"\b(hf_)[A-Za-z0-9]{6,}")
# The name of a field of a query. It is looked at once, from its beginning, however long a stranger makes it.
_NAME = re.compile(r"(?<![^\s=&])[^\s=&]++=")
_VALUE = re.compile(r"[^\s&'\"]+")
_SECRET = re.compile("token|sig|key|secret|password|credential|auth", re.I)


def visible(text: str, keep: str = "") -> str:
    """Return a text with what a terminal obeys or hides written as JSON writes it; but not the characters to keep."""

    def written(found: re.Match[str]) -> str:
        return found[0] if found[0] in keep else _LINES.get(found[0], f"\\u{ord(found[0]):04x}")

    return _UNSEEN.sub(written, text)


def without_secrets(text: str) -> str:
    """Return a text without names and passwords in addresses, and without tokens."""
    text = _USER.sub(r"\1", text)
    pieces, at = [], 0
    for found in _NAME.finditer(text):
        begin = max(found.start(), at)
        before = text[begin - 1 : begin] if begin > at else ""
        name = text[begin : found.end()] if before == "&" else text[begin : found.end()].partition("?")[2]
        if _SECRET.search(name) and (value := _VALUE.match(text, found.end())):
            pieces.append(text[at : found.end()])
            at = value.end()
    text = "***".join([*pieces, text[at:]])
    return _TOKEN.sub(r"\1***", _BEARER.sub(r"\1***", text))


def brief(text: str, width: int = 60) -> str:
    """Return the beginning of a text, at most so many characters on one line, safe to print and to log."""
    line = visible(without_secrets(text[: 16 * width]))
    return line if len(line) <= width and len(text) <= 16 * width else line[: width - 1] + "…"


class EdgepackError(Exception):
    """The base of all errors: one sentence that names the place, and a hint that names the next step.

    Whatever foreign text they hold, both are safe to print and to log.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = visible(without_secrets(message))
        self.hint = None if hint is None else visible(without_secrets(hint))
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class UsageError(EdgepackError, ValueError):
    """An argument that cannot be honoured.

    Next step: correct the argument that the sentence names; nothing was done.
    """


class UnknownOptionError(UsageError, TypeError):
    """A keyword that nothing here knows.

    Next step: take the option that the hint names.
    """


class SchemaError(UsageError):
    """A schema, a regex, a grammar or a tool that cannot bind an answer.

    Next step: simplify what the sentence names, or leave the bound out and check the answer yourself.
    """


class SourceError(EdgepackError, ValueError):
    """The model to convert is missing, damaged or inconsistent.

    Next step: fetch the model again, or whole; where the file itself is wrong, tell whoever published it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # A value that it quotes is as long as a stranger's file has it.
        super().__init__(message if len(message) <= 800 else f"{message[:500]} ... {message[-200:]}", hint=hint)


class UnsupportedModelError(SourceError):
    """The source is sound, but edgepack does not build its architecture or one of its features.

    Next step: take another model; `edgepack models` lists some that are built.
    """


class BuildError(EdgepackError):
    """A build could not be finished; nothing was left behind.

    Next step: remove the cause that the sentence names, and build again.
    """


class OutputExistsError(BuildError, FileExistsError):
    """The output folder exists already.

    Next step: remove the folder, or name another with `--out`.
    """


class LicenceError(BuildError):
    """The licence of the model asks to be accepted, or for another name.

    Next step: read the licence, and accept it with `--accept-licence`, or give the bundle the name that it asks for.
    """


class ProofError(BuildError):
    """A gate of the proof failed: what was written is not the same model.

    Next step: take another scheme or target for the variant that failed, and report it: an exact scheme never should.
    """


class BundleError(EdgepackError, ValueError):
    """A bundle cannot be used.

    Next step: build the bundle again, or copy it again from where it is whole.
    """


class BundleNotFoundError(BundleError, FileNotFoundError):
    """There is no bundle at the path, which is its ``filename``.

    Next step: check the path; a bundle is a folder with a manifest.json.
    """


class BundleDamagedError(BundleError):
    """A file of the bundle differs from its manifest.

    Next step: copy it again, and `edgepack verify` it: the sentence names the file.
    """


class BundleTooNewError(BundleError):
    """The bundle needs a newer edgepack.

    Next step: upgrade edgepack on this machine.
    """


class TrustError(BundleError):
    """A bundle that is not signed as it should be, or that the policy of this device does not admit.

    Next step: get the bundle from whoever signs for this device; where you are that, sign it.
    """


class StoreError(BundleError):
    """A store of installed bundles that cannot be read or written; what was installed is there as before.

    Next step: what the hint says of space or permissions, then the same command again.
    """


class TransferError(BundleError):
    """A registry or a web folder did not give, or did not take, what it should; nothing half-done is in use.

    Next step: what the sentence says; the same command goes on where it ended.
    """


class ReplayError(BundleError):
    """The tokenizer or the chat template gives something else here than when the bundle was built.

    Next step: install the versions of the libraries that the hint names, or build the bundle again with these.
    """


class ExtraMissingError(EdgepackError, ImportError):
    """What was asked for needs packages that are not installed; the hint is the command that installs them all.

    Next step: run that command in the environment that the program runs in.
    """


class EngineError(EdgepackError, RuntimeError):
    """An engine failed.

    Next step: try another variant or another engine, as `edgepack plan` lists them.
    """


class EngineMissingError(EngineError):
    """An engine is not installed, or no installed engine can run the bundle on this machine.

    Next step: run the command in the hint; `edgepack doctor` shows what each engine lacks.
    """


class EngineCrashedError(EngineError):
    """The process of an isolated engine ended; the next call starts another.

    Next step: ask again; where it crashes again, take another variant, or less context.
    """


class EngineTimeoutError(EngineError, TimeoutError):
    """An isolated engine did not answer in time and was ended; the next call starts another.

    Next step: ask again, or for less; where it hangs again, take another variant.
    """


class Cancelled(EngineError):  # noqa: N818 - a state that the caller asked for, not a fault
    """A session was asked to stop in the middle of its work.

    Next step: none is needed; the session takes the next request.
    """


class ToolCallError(EdgepackError, ValueError):
    """An answer begins a tool call that is malformed, of no known tool, or with arguments that do not validate.

    ``text`` is the answer as the model wrote it.

    Next step: send `messages` after those that it answered, and the model may correct itself.
    """

    def __init__(self, message: str, *, text: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.text = text

    @property
    def messages(self) -> list[dict[str, object]]:
        """What tells the model of it, after the messages that it answered: its own words, and what is wrong with them.

        The words stand there as a text, and a user says what is wrong: that is what every chat template prints.
        """
        return [{"role": "assistant", "content": self.text}, {"role": "user", "content": f"Error: {self}"}]


class ContextError(EdgepackError, ValueError):
    """The tokens or the memory do not fit.

    Next step: ask for less context, or for a shorter text.
    """


class ContextTooLargeError(ContextError):
    """The context asked for exceeds the memory of the machine or what was verified.

    Next step: load with less context; the hint names the largest that fits, where one does.
    """


class PromptTooLongError(ContextError):
    """The prompt is longer than the context that was loaded.

    Next step: shorten the prompt, load with more context, or set `on_overflow`.
    """


# What other tools call the same thing.
_ALIASES = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_length": "max_tokens",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "random_seed": "seed",
    "top_logprobs": "n_best",
    "response_format": "json_schema",
    "format": "json_schema",
    "num_ctx": "context",
    "n_ctx": "context",
    "max_seq_len": "context",
    "context_length": "context",
    "n_threads": "threads",
    "num_threads": "threads",
    "engine": "backend",
    "runtime": "backend",
    "cache_type": "kv_cache",
}


def check_options(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``UnknownOptionError`` for the first keyword that is not known, with the known one that it means."""
    known = list(known)
    for name in given:
        if name not in known:
            alias = _ALIASES.get(name)
            close = [alias] if alias in known else get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"It takes: {', '.join(known)}."
            raise UnknownOptionError(f"{what} has no option {name!r}.", hint=hint)
