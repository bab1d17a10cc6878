"""What systemd gives a service and wants to hear: sockets by ``LISTEN_FDS``, words by ``NOTIFY_SOCKET``.

As sd_listen_fds(3) and sd_notify(3) describe them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

_FIRST = 3


def sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Return the sockets that systemd opened for this process; none where it opened none. No child inherits them."""
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = [socket.socket(fileno=fd) for fd in range(_FIRST, _FIRST + int(count))]
    for each in found:
        os.set_inheritable(each.fileno(), False)
    return found


def notify(word: str, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Tell systemd "READY=1", "STOPPING=1", "WATCHDOG=1" or "STATUS=..."; return whether it wants to hear."""
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        try:
            out.sendto(word.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            return False
    return True


def watchdog_s(environ: MutableMapping[str, str] = os.environ) -> float | None:
    """Return the seconds within which systemd wants to hear again and again, None where it does not watch."""
    for_us = environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
    usec = environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if for_us and usec.isdigit() and int(usec) else None
