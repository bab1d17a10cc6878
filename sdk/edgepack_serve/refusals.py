"""Why a request is not answered, and the status that says so. What the SDK raises has its status here too."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack import errors
from edgepack.errors import EdgepackError, UsageError


class RefusedError(EdgepackError):
    """A request that is not answered: its ``status``, the ``code`` that clients of OpenAI's interface know, headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        hint: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


def status_of(error: BaseException) -> int:
    """Return the status of the answer to a request that met an error."""
    match error:
        case RefusedError():
            return error.status
        case errors.EngineTimeoutError():
            return 504
        case errors.EngineCrashedError() | errors.Cancelled():
            return 503
        case UsageError() | errors.PromptTooLongError():
            return 400
        case errors.ContextTooLargeError() | errors.EngineMissingError() | errors.BundleError():
            return 503
        case _:
            return 500


def headers_of(error: BaseException) -> Mapping[str, str]:
    """Return the headers of that answer. Official clients ask again after a 500, unless one says that it is no use."""
    match error:
        case RefusedError():
            return error.headers
        case errors.ToolCallError():
            return {"x-should-retry": "false"}
        case _:
            return {}


def code_of(error: BaseException) -> str | None:
    """Return the code that programs read, None where there is none for it."""
    match error:
        case RefusedError():
            return error.code
        case errors.PromptTooLongError():
            return "context_length_exceeded"
        case errors.ToolCallError():
            return "invalid_tool_call"
        case _:
            return None
