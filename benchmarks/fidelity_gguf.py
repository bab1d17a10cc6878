"""Logits of a GGUF file that llama.cpp's converter wrote, by edgepack's gguf runtime, for ``fidelity.py``.

    python fidelity_gguf.py FILE CHECKPOINT PROMPT.json LOGITS.npy

The engine's parameters are those that edgepack runs its own files with. The runtime refuses what differs from the
decoder of a bundle, which is what is to be measured here: that one check is left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np

from edgepack.device.hardware import detect
from edgepack.runtime import Options
from edgepack_packager import families
from edgepack_packager.checkpoint import CONFIG
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_runtimes.gguf import library, load


def main() -> None:
    """Run the prompt in a session of its length, save float32 [n, n_vocab]."""
    file, checkpoint, prompt, out = sys.argv[1:]
    decoder = families.describe(read_object(Path(checkpoint, CONFIG)))
    engine = library.load(next(engine for engine in library.ENGINES if engine.distribution == "xllamacpp"))
    ids = json.loads(Path(prompt).read_text())
    options = Options(context=len(ids), threads=detect().threads, kv_cache="f32")
    with patch.object(load, "check", lambda header, decoder, path: header.metadata["general.architecture"]):
        session = load.open_session(engine, Path(file), decoder, options)
    np.save(out, session.forward_all(ids))
    session.close()
    print(engine.version)


if __name__ == "__main__":
    main()
