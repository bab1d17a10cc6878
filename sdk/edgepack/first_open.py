"""The first opening of a bundle on a device: its text side must give what it gave when the bundle was built.

The libraries that tokenise and render are the device's own, and another version may do it otherwise. Once they agreed
with the bundle's vectors, a line in the state folder says so, and the bundle opens without a replay until one changes.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from unicodedata import unidata_version

from edgepack.bundle.files import Bundle
from edgepack.bundle.writing import write_atomically
from edgepack.decoding.repro import versions
from edgepack.device.state import read_kept, state_folder
from edgepack.errors import ReplayError
from edgepack.text.chat import ChatTemplate
from edgepack.text.replay import replay_text
from edgepack.text.tokenizer import Tokenizer

LIBRARIES = ("edgepack", "jinja2", "tokenizers")


def check_text(bundle: Bundle, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
    """Replay the text vectors, unless this device did so before with the same bundle and libraries.

    A device that cannot remember replays each time. Raises ``ReplayError`` that names the first difference.
    """
    libraries = _libraries()
    with suppress(OSError, RuntimeError):
        if read_kept(_mark(bundle)) == libraries.encode():
            return
    for replay in replay_text(bundle.manifest, tokenizer, template):
        if replay.verdict == "differs":
            built = bundle.manifest.producer.packages
            with_ = ", ".join(f"{name} {built[name]}" for name in LIBRARIES if name in built)
            raise ReplayError(
                f"The {replay.name} of {bundle.path.name} does not give what it gave when it was built: "
                f"{replay.reason}. Here are {libraries}.",
                hint=f"Install what it was built with: {with_}." if with_ else "Build the bundle again.",
            )
    with suppress(OSError, RuntimeError):
        mark = _mark(bundle)
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(mark, libraries.encode())


def _mark(bundle: Bundle) -> Path:
    return state_folder() / "replayed" / bundle.id


def _libraries() -> str:
    found = [f"{name} {found or 'of an unknown version'}" for name, found in versions(LIBRARIES).items()]
    return ", ".join([*found, f"Unicode {unidata_version}"])  # what normalises is Python's
