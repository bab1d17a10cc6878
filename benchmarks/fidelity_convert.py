"""llama.cpp's ``convert_hf_to_gguf.py`` without a vocabulary, for ``fidelity.py``.

    python fidelity_convert.py LLAMA_CPP ARGUMENTS...

The converter refuses a tokenizer that it does not know, and a random model's is none that it does: each class writes
the vocabulary "none" instead. Everything else is the converter's own doing.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the converter with its lookup of classes replaced."""
    source = Path(sys.argv[1])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    conversion: Any = import_module("conversion")
    find = conversion.get_model_class

    def without_vocabulary(*arguments: Any, **options: Any) -> Any:
        found = find(*arguments, **options)
        for kind in _kinds(conversion.TextModel):  # some hold an object of another, which writes
            kind.set_vocab = lambda model: model._set_vocab_none()
        return found

    conversion.get_model_class = without_vocabulary
    script = str(source / "convert_hf_to_gguf.py")
    sys.argv = [script, *sys.argv[2:]]
    runpy.run_path(script, run_name="__main__")


def _kinds(kind: Any) -> Iterator[Any]:
    """Yield a class and all below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


if __name__ == "__main__":
    main()
