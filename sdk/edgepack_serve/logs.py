"""The server's log on standard error: a line an event, as ``key=value`` or as JSON."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import msgspec

from edgepack.errors import visible, without_secrets

_OWN = "edgepack.serve"


class Lines(logging.Formatter):
    """Writes an event with its ``fields``; nothing that a terminal would obey, and no secret, is in it."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._as_json:
            return msgspec.json.encode(fields).decode()
        return " ".join(f"{key}={_value(value)}" for key, value in fields.items())


def start(as_json: bool, level: int = logging.INFO) -> None:
    """Let the server's events, and what its HTTP library warns of, go to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(as_json))
    for name, least in ((_OWN, level), ("uvicorn", logging.ERROR), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(least)
        logger.propagate = False


def _value(value: object) -> str:
    text = visible(without_secrets(value)) if isinstance(value, str) else str(value)
    return msgspec.json.encode(text).decode() if not text or set(text) & set(' "=') else text
