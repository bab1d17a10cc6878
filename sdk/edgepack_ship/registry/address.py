"""Where a bundle is on the network, as users write it: ``oci://HOST/REPOSITORY:TAG``, ``https://HOST/FOLDER/#NAME``.

Texts in and values out; it opens nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

from edgepack.errors import UsageError

OCI, HTTP, HTTPS = "oci://", "http://", "https://"

_HOST = r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<host>(?i:{_HOST}))/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
# What the registry of Docker's hub is called, and where it answers.
_DOCKER, _DOCKER_ANSWERS = "docker.io", "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Reference:
    """An artifact in a repository of an OCI registry, by its tag, its digest ("sha256:...") or both."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{OCI}{self.host}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")

    def server(self, plain_http: bool = False) -> str:
        """Return the address of the server that answers for it: by http where that is allowed, or this machine."""
        host = _DOCKER_ANSWERS if self.host == _DOCKER else self.host
        return (HTTP if plain_http or is_loopback(re.sub(":[0-9]+$", "", host)) else HTTPS) + host

    @property
    def named(self) -> str:
        """What the registry knows the artifact by: the digest where there is one, which no one can move."""
        return self.digest or self.tag or ""


@dataclass(frozen=True, slots=True)
class WebFolder:
    """A folder on a web server, whose address ends with a slash, and the name of a bundle in it, None for its only one.

    A name may also be an id, "sha256:...".
    """

    url: str
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.url}#{self.name}" if self.name else self.url


def is_address(where: str) -> bool:
    """Say whether a bundle is named by an address on the network, and not by a path."""
    return where.lower().startswith((OCI, HTTP, HTTPS))


def read(where: str) -> Reference | WebFolder:
    """Return what an address names. Raises ``UsageError`` for what is none, and for one with a password in it."""
    if where.lower().startswith(OCI):
        return reference(where)
    try:
        parts = urlsplit(where)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if not is_address(where) or not host or re.search(r"[\s\\\x00-\x1f]", where):
        raise UsageError(f"{where!r} is no address of a bundle.", hint=f"Write {HTTPS}HOST/FOLDER/#NAME.")
    _refuse_password(parts.netloc)
    if parts.query:
        raise UsageError(
            f"The address of {host} has a query.", hint=f"A folder has none: write {HTTPS}HOST/FOLDER/#NAME."
        )
    folder = parts.path.removesuffix("index.json").rstrip("/") + "/"
    return WebFolder(f"{parts.scheme.lower()}://{parts.netloc}{folder}", unquote(parts.fragment) or None)


def reference(where: str) -> Reference:
    """Return the artifact that an address names. Raises as ``read``."""
    rest = where[len(OCI) :]
    _refuse_password(rest.partition("/")[0])
    found = _REFERENCE.fullmatch(rest) if where.lower().startswith(OCI) else None
    if found is None or len(found["repository"]) > 255:
        raise UsageError(
            f"{where!r} is no address in a registry.", hint=f"Write {OCI}HOST/REPOSITORY:TAG, the repository in small."
        )
    if not (found["tag"] or found["digest"]):
        raise UsageError(f"{where} names no tag and no digest.", hint="End it with :TAG, as :1.0, or with @sha256:...")
    return Reference(found["host"].lower(), found["repository"], found["tag"], found["digest"])


def is_loopback(host: str) -> bool:
    """Say whether a host, without its port, is this machine itself."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _refuse_password(host: str) -> None:
    if "@" in host:
        raise UsageError(
            "A name and a password do not belong in an address, which others can read.",
            hint="Log in with: docker login, or set EDGEPACK_REGISTRY_USER and EDGEPACK_REGISTRY_PASSWORD.",
        )
