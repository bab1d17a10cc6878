"""Options as the command line spells them, in sentences of the SDK that name them as Python does."""

from __future__ import annotations

import re

_NAMES = (
    "backend", "context", "control_tokens", "date", "draft", "isolate", "kv_cache", "max_tokens", "on_overflow",
    "prompt_lookup", "seed", "strict", "temperature", "thinking", "thinking_tokens", "threads", "variant", "verify",
)  # fmt: skip
"""What is an option of commands under the same name; ``thinking`` is ``--think`` and ``--no-think``."""

_WRITTEN = re.compile(rf"(?<![^\s(])({'|'.join(_NAMES)})=('[^']*'|[\w-]+(?:\.\d+)?)")


def spelled(text: str) -> str:
    """Return a text with ``context=512`` as ``--context 512``, and ``thinking=False`` as ``--no-think``."""
    return _WRITTEN.sub(lambda found: _option(found[1], found[2]), text)


def _option(name: str, value: str) -> str:
    option = "think" if name == "thinking" else name.replace("_", "-")
    if value in ("True", "False"):
        return f"--{option}" if value == "True" else f"--no-{option}"
    return f"--{option} {value.strip(chr(39))}"
