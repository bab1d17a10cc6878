"""What a server refuses, and how: from its statuses and its words to edgepack's errors.

The words are a stranger's: they are cut short, and what is a secret is taken out of them.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from edgepack.bundle.form import MAX_DEPTH, depth_of
from edgepack.errors import EdgepackError, EngineError, EngineTimeoutError, PromptTooLongError, UsageError, brief

T = TypeVar("T")

_TOO_LONG = re.compile(
    r"context[_ ]length[_ ]exceeded|exceed[_ ]context[_ ]size|maximum (?:allowed )?context length|maximum model length"
    r"|exceeds the (?:available |model's |maximum )*context|longer than the (?:model's |maximum )*context"
    r"|inputs?`? tokens|input length exceeds|prompt (?:is )?too long|tokens, the context \d",
    re.IGNORECASE,
)
_WORDS = 300
_OF_TYPES = {"invalid_request_error": 400, "BadRequestError": 400, "exceed_context_size_error": 400, "validation": 422}


class _Said(msgspec.Struct):
    """An error in any of the forms that servers have: OpenAI's, TGI's, FastAPI's, Ollama's."""

    error: Any = None
    message: Any = None
    detail: Any = None
    object: Any = None
    type: Any = None
    code: Any = None
    error_type: Any = None


def decoded(data: bytes, form: type[T]) -> T:
    """Return what JSON says, in the form of a struct. Raises ``EngineError`` for anything else."""
    try:
        return msgspec.json.decode(flat(data), type=form)
    except msgspec.ValidationError as error:
        raise EngineError(
            f"The server's answer has another form than it should: {brief(str(error), 200)}.", hint="Is it a model's?"
        ) from None
    except (msgspec.DecodeError, ValueError):
        raise EngineError(
            f"The server answers with what is no JSON: {brief(data[:200].decode(errors='replace'))!r}.",
            hint="Check the address.",
        ) from None


def flat(data: bytes) -> bytes:
    """Return JSON that a reader can follow on the stack that it has. Raises ``ValueError`` for more levels."""
    if depth_of(data) > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    return data


def words_of(body: bytes) -> tuple[str, str]:
    """Return the sentence of an error and its code or type, "" where there is none."""
    try:
        said = msgspec.json.decode(flat(body), type=_Said)
    except (msgspec.DecodeError, ValueError):
        return "", ""
    return _words(said.error if isinstance(said.error, dict) else msgspec.structs.asdict(said))


def event_fault(error: Any) -> EdgepackError:
    """Return the error that a stream ends with instead of its answer."""
    message, code = _words(error if isinstance(error, dict) else {"message": error})
    status = error.get("code") if isinstance(error, dict) else None
    found = status if isinstance(status, int) else _OF_TYPES.get(code, 500)
    return refused(found, message, code, "The server", None)


def refused(status: int, message: str, code: str, server: str, wait: str | None) -> EdgepackError:
    """Return what a status means. ``wait`` is the server's Retry-After."""
    told = brief(message, _WORDS).rstrip(".")
    said = f": {told}" if told else ""
    if status in (400, 413, 422, 500) and _TOO_LONG.search(f"{code} {message[:2000]}"):
        return PromptTooLongError(
            f"The prompt is too long for {server}{said}.", hint="Shorten it, or serve the model with more context."
        )
    match status:
        case 401 | 403:
            return UsageError(
                f"{server} takes no question from this user ({status}{said}).",
                hint="Pass its api_key, or set EDGEPACK_API_KEY.",
            )
        case 404 | 405:
            return UsageError(f"{server} has not got what was asked for ({status}{said}).", hint="Check url and model.")
        case 408 | 504:
            return EngineTimeoutError(f"{server} did not answer in time ({status}{said}).", hint="Ask again, or less.")
        case 429 | 503:
            after = f" after {wait} seconds" if wait is not None and wait.isdecimal() and len(wait) < 6 else " later"
            return EngineError(f"{server} takes no more questions now ({status}{said}).", hint=f"Ask again{after}.")
        case _ if 300 <= status < 400:
            return UsageError(
                f"{server} sends on to another address ({status}).", hint="Pass the address where it answers itself."
            )
        case _ if 400 <= status < 500:
            return UsageError(f"{server} refuses the question ({status}{said}).", hint="Correct what it names.")
        case _:
            return EngineError(
                f"{server} failed ({status}{said}).", hint="Ask again; where it fails again, ask who runs it."
            )


def _words(said: dict[str, Any]) -> tuple[str, str]:
    message = next((value for name in ("message", "error", "detail") if (value := said.get(name))), "")
    if isinstance(message, list):  # FastAPI's, of which each says what is wrong and where
        first = message[0] if message and isinstance(message[0], dict) else {}
        place = ".".join(map(str, first["loc"])) if isinstance(first.get("loc"), list) else ""
        message = f"{place}: {first.get('msg', '')}"
    code = next((value for name in ("code", "type", "error_type") if isinstance(value := said.get(name), str)), "")
    return message if isinstance(message, str) else "", code
