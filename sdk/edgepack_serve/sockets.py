"""The socket that the server listens on: an address of the network, a path, or systemd's own."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from edgepack.errors import EdgepackError, UsageError

_BACKLOG = 256


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address. Raises ``EdgepackError`` with the system's reason."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"--host {host} is no address of this machine: {error.strerror}.") from None
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        taken = error.errno in (98, 48)  # EADDRINUSE of Linux and of macOS
        what = "is in use" if taken else f"cannot be listened on: {error.strerror}"
        hint = "Choose another --port, or --port 0 for a free one." if taken else None
        raise EdgepackError(f"{host}:{port} {what}.", hint=hint) from None
    return made


def address_of(listening: socket.socket) -> str | None:
    """Return the address that a socket is bound to, None for a Unix socket."""
    return None if listening.family == socket.AF_UNIX else str(listening.getsockname()[0]).partition("%")[0]


def unix(path: Path) -> socket.socket:
    """Return a socket that listens at a path, which this user and its group may use. One that nobody listens on any
    more is replaced. Raises ``EdgepackError``."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_left(path)
        before = os.umask(0o117)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise EdgepackError(f"{path} cannot be listened on: {error.strerror or error}.") from None
    return made


def _remove_left(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise EdgepackError(f"{path} is there already, and is no socket.", hint="Choose another path.")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError:
            pass
    raise EdgepackError(f"{path} is in use by another server.", hint="Choose another path.")
