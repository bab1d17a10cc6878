"""Logits of a folder that ``mlx_lm convert`` wrote, by mlx-lm on the processor.

    python fidelity_mlx.py FOLDER PROMPT.json LOGITS.npy

A worker of ``fidelity.py`` that runs in mlx-lm's own environment. The prompt is one call with an empty cache; all that
is not packed becomes float32, and activations follow. Prints the versions.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache


def main() -> None:
    """Load, run the prompt, save float32 [n, n_vocab]."""
    folder, prompt, out = sys.argv[1:]
    mx.set_default_device(mx.cpu)
    model = load(folder)[0]
    # The payload is measured, not the arithmetic of 16 bits in which a processor is slow as well.
    model.set_dtype(mx.float32)
    ids = mx.array([json.loads(Path(prompt).read_text())])
    np.save(out, np.array(model(ids, cache=make_prompt_cache(model))[0].astype(mx.float32)))
    print(f"mlx-lm {version('mlx-lm')} on mlx {version('mlx')}")


if __name__ == "__main__":
    main()
