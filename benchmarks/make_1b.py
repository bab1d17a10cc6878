"""Make a checkpoint of Llama-3.2-1B's exact shape with random weights (bf16, tied, 2.5 GB), for the packing benchmark.

    python benchmarks/make_1b.py FOLDER

The shape is the published config.json of meta-llama/Llama-3.2-1B. Its tokenizer may not be redistributed, so the
folder gets a small byte-level one, which leaves most rows of the embedding without a token.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SHAPE = {
    "hidden": 2048,
    "layers": 16,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 64,
    "intermediate": 8192,
    "n_vocab": 128256,
    "context": 131072,
    "theta": 500000.0,
    "rope": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def main() -> None:
    """Write the checkpoint with the maker that the tests use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from models import make_llama

    print(make_llama(folder, seed=1, shards=4, gain=0.2, **SHAPE))


if __name__ == "__main__":
    main()
