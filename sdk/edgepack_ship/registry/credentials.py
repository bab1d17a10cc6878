"""Who the user is to a registry: the environment says it, or the configuration that ``docker login`` writes.

They are read when a server asks for them and never before, kept by none, and in no error and no ``repr``.
"""

from __future__ import annotations

import os
import re
import subprocess
from base64 import b64decode
from pathlib import Path

import msgspec

from edgepack.errors import TransferError
from edgepack_ship.registry.authorization import Credentials

USER, PASSWORD = "EDGEPACK_REGISTRY_USER", "EDGEPACK_REGISTRY_PASSWORD"
DOCKER = "DOCKER_CONFIG"
_LARGEST = 1 << 20
_HELPER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_IDENTITY = "<token>"
"""The user's name with which a helper says that the secret is an identity token."""


class _Login(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct, rename="camel"):
    auths: dict[str, _Login] = {}
    cred_helpers: dict[str, str] = {}
    creds_store: str = ""


class _Helped(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def find(host: str) -> Credentials | None:
    """Return the user's credentials for a host (with its port), None without any.

    Raises ``TransferError`` for a configuration that cannot be read, and for a helper that fails.
    """
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    if user is not None and password is not None:
        return Credentials(user, password)
    config = _config()
    if config is None:
        return None
    keys = (host, "index.docker.io") if host == "registry-1.docker.io" else (host,)
    for known, helper in config.cred_helpers.items():
        if _host(known) in keys:
            return _helped(helper, known)
    for known, login in config.auths.items():
        if _host(known) in keys and (found := _of(login)) is not None:
            return found
    return _helped(config.creds_store, _key(config, keys)) if config.creds_store else None


def _key(config: _Config, keys: tuple[str, ...]) -> str:
    """Return what a store of credentials knows a host by: as the configuration writes it."""
    return next((known for known in config.auths if _host(known) in keys), keys[0])


def _host(key: str) -> str:
    return key.lower().removeprefix("https://").removeprefix("http://").partition("/")[0]


def _config() -> _Config | None:
    folder = os.environ.get(DOCKER) or os.path.expanduser("~/.docker")
    place = Path(folder, "config.json")
    try:
        with open(place, "rb") as file:  # often a link to where a user keeps such files
            return msgspec.json.decode(file.read(_LARGEST), type=_Config)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TransferError(f"{place} cannot be read: {error.strerror}.", hint="Check its permissions.") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise TransferError(f"{place} is no configuration of Docker's.", hint="Log in again: docker login.") from None


def _of(login: _Login) -> Credentials | None:
    if login.identitytoken:
        return Credentials("", login.identitytoken, identity=True)
    if login.username:
        return Credentials(login.username, login.password)
    try:
        user, colon, password = b64decode(login.auth, validate=True).decode().partition(":")
    except ValueError:
        return None
    return Credentials(user, password) if colon else None


def _helped(helper: str, key: str) -> Credentials | None:
    """Ask a program of Docker's, ``docker-credential-HELPER``, which reads a host and writes JSON."""
    program = f"docker-credential-{helper}"
    if not _HELPER.fullmatch(helper):
        raise TransferError(f"{program!r} is no name of a credential helper.", hint="Log in again: docker login.")
    try:
        ended = subprocess.run(
            [program, "get"], input=key.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        raise TransferError(
            f"{program}, which keeps the credentials of {key}, cannot be run.",
            hint=f"Install it, or set {USER} and {PASSWORD}.",
        ) from None
    if ended.returncode != 0:  # it says so where it knows none
        return None
    try:
        said = msgspec.json.decode(ended.stdout, type=_Helped)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise TransferError(f"{program} answers without credentials.", hint=f"Set {USER} and {PASSWORD}.") from None
    return Credentials(said.username, said.secret, identity=said.username == _IDENTITY)
