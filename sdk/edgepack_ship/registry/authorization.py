"""How a server asks who one is, and what it is told: ``Basic`` and ``Bearer`` challenges, and the tokens' servers.

Texts and bytes in and values out; it opens nothing, and knows no credentials but those that it is given.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlencode

import msgspec

from edgepack.errors import TransferError

MAX_TOKEN = 1 << 16
_LONGEST = 4096
_FIELD = re.compile(r'(?<![\w-])([\w-]{1,40})=(?:"([^"]{0,2000})"|([^\s,"]{1,2000}))')
_VISIBLE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password for one host, or an identity token, with which a server of tokens gives others."""

    user: str = field(repr=False)
    password: str = field(repr=False)
    identity: bool = False

    def basic(self) -> str:
        """Return the header that holds them."""
        return "Basic " + b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server asks for. ``realm`` is the address of the server of tokens, empty in a "basic" one."""

    scheme: Literal["basic", "bearer"]
    realm: str = ""
    service: str = ""
    scope: str = ""

    def query(self, realm: str) -> str:
        """Return what stands behind the realm's address where a token is asked for by GET."""
        fields = {name: value for name in ("service", "scope") if (value := getattr(self, name))}
        return ("&" if "?" in realm else "?") + urlencode(fields) if fields else ""

    def form(self, credentials: Credentials) -> bytes:
        """Return what is POSTed to ``realm`` with an identity token."""
        fields = {
            "grant_type": "refresh_token",
            "refresh_token": credentials.password,
            "client_id": "edgepack",
            "service": self.service,
            "scope": self.scope,
        }
        return urlencode(fields).encode()


def challenge(header: str) -> Challenge | None:
    """Return what a WWW-Authenticate header asks for: a token where it may be one. None for anything unknown."""
    header = header[:_LONGEST]
    if bearer := re.search(r"\bbearer\s", header, re.I):
        fields: dict[str, str] = {}
        for found in _FIELD.finditer(header, bearer.end()):
            fields.setdefault(found[1].lower(), found[2] or found[3] or "")
        if realm := fields.get("realm"):
            return Challenge("bearer", realm, fields.get("service", ""), fields.get("scope", ""))
    return Challenge("basic") if re.search(r"\bbasic\b", header, re.I) else None


class _Answer(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def token(data: bytes, host: str) -> str:
    """Return the header that holds the token of a server's answer. Raises ``TransferError`` where there is none."""
    try:
        answer = msgspec.json.decode(data, type=_Answer)
        given = answer.token or answer.access_token
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        given = ""
    if not _VISIBLE.fullmatch(given):
        raise TransferError(f"{host} answers without a token.", hint="Check the name of the repository.")
    return f"Bearer {given}"
