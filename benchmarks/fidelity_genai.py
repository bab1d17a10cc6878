"""Logits of a folder that the onnxruntime-genai builder wrote, by onnxruntime-genai on the processor.

    python fidelity_genai.py FOLDER PROMPT.json LOGITS.npy

A worker of ``fidelity.py`` that runs in the builder's own environment. Not by onnxruntime alone: the caches of windowed
layers are onnxruntime-genai's to lay out. The prompt is one call with an empty cache; prints the versions.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime_genai


def main() -> None:
    """Load, run the prompt, save float32 [n, n_vocab]."""
    folder, prompt, out = sys.argv[1:]
    model = onnxruntime_genai.Model(folder)
    generator = onnxruntime_genai.Generator(model, onnxruntime_genai.GeneratorParams(model))
    generator.append_tokens(np.array(json.loads(Path(prompt).read_text()), np.int32))
    np.save(out, generator.get_output("logits")[0].astype(np.float32))
    print(f"onnxruntime-genai {version('onnxruntime-genai')} on onnxruntime {version('onnxruntime')}")


if __name__ == "__main__":
    main()
