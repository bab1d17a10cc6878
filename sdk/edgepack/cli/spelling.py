"""Options as the command line spells them, in sentences of the SDK that name them as Python does."""

from __future__ import annotations

import re

_NAMES = (
    "backend", "context", "control_tokens", "date", "draft", "isolate", "kv_cache", "max_tokens", "on_overflow",
    "policy", "prompt_lookup", "seed", "strict", "temperature", "thinking", "thinking_tokens", "threads",
    "variant", "verify", "warm",
)  # fmt: skip
"""What is an option of commands under the same name; ``thinking`` is ``--think`` and ``--no-think``."""

_NAMED = {name: "--" + name.replace("_", "-") for name in (
    *_NAMES, "grammar", "id", "logprobs", "min_p", "n_best", "regex", "repetition_penalty", "stop", "system", "tools",
    "sequences", "top_k", "top_p",
)} | {"json_schema": "--schema", "sequences": "--parallel", "thinking": "--think/--no-think"}  # fmt: skip
"""What is named without a value, where it is no other word: as what a sentence begins with, or as what to leave out."""

_NAME = rf"(?:{'|'.join(_NAMED)})(?:\[\d+\])?"
_BARE = re.compile(
    rf"(?:(?<![^\n])|(?<=\bLeave out )|(?<=\bbeside )){_NAME}(?: and {_NAME})?(?=\.?$|,| (?:was|is|are|cannot) )"
)
_WRITTEN = re.compile(rf"(?<![^\s(])({'|'.join(_NAMES)})=('[^']*'|[\w-]+(?:\.\d+)?)")


def spelled(text: str) -> str:
    """Return a text with ``context=512`` as ``--context 512``, ``thinking=False`` as ``--no-think``, and what is named
    alone, as in "max_tokens is 0.", as ``--max-tokens``."""
    text = _BARE.sub(lambda found: " and ".join(_NAMED[each.split("[")[0]] for each in found[0].split(" and ")), text)
    return _WRITTEN.sub(lambda found: _option(found[1], found[2]), text)


def _option(name: str, value: str) -> str:
    option = "think" if name == "thinking" else name.replace("_", "-")
    if value in ("True", "False"):
        return f"--{option}" if value == "True" else f"--no-{option}"
    return f"--{option} {value.strip(chr(39))}"
