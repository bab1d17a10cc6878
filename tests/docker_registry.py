"""The registry that Debian packages, on this machine: ``apt-get install docker-registry``. Tests skip without it."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER, PASSWORD = "packer", "let me in"
_BCRYPT = "$2y$05$abcdefghijklmnopqrstuu4h2R.N3/mVBA7Xh7aLzKSJDAsK61n52"  # of PASSWORD


@contextmanager
def running(place: Path, auth: str = "") -> Iterator[str]:
    """Run a registry that keeps its blobs in memory, and give its host. ``auth`` is YAML of its configuration, which
    goes to a folder."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs Debian's docker-registry")
    place.mkdir(exist_ok=True)
    config = place / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{inmemory: {{}}}}\nhttp: {{addr: '127.0.0.1:0'}}\nlog: {{formatter: text}}\n{auth}"
    )
    with subprocess.Popen(
        [program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "listening on " in line:
                    host = line.split("listening on ")[1].split('"')[0].split(",")[0].strip()
                    break
            else:
                pytest.fail("the registry ended before it listened")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield host
        finally:
            process.terminate()


def password_file(place: Path) -> str:
    """The YAML of a registry that asks for ``USER`` and ``PASSWORD``."""
    file = place / "users"
    file.write_text(f"{USER}:{_BCRYPT}\n")
    return f"auth: {{htpasswd: {{realm: here, path: {file}}}}}\n"
