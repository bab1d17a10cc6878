"""Makes the golden logits: transformers in fp32 over every model that the reference is held to.

Run it where torch and transformers are installed (the ``oracle`` extra), with EDGEPACK_SHARED set: python make.py
With names of models after it, it makes theirs only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import golden_models  # noqa: E402
import oracle  # noqa: E402

COLUMNS = 32


def main() -> None:
    """Write one archive for each model: ids, some columns of the logits after each id, the digest of the weights."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in sys.argv[1:] or golden_models.names():
            folder = golden_models.folder(name, Path(scratch))
            ids = golden_models.ids(name, folder)
            logits = oracle.logits(folder, ids)
            columns = np.sort(np.random.default_rng(0).choice(logits.shape[1], COLUMNS, replace=False))
            np.savez(
                HERE / f"{name}.npz",
                ids=np.array(ids, dtype=np.int32),
                columns=columns.astype(np.int32),
                logits=logits[:, columns],
                weights=np.array(golden_models.digest(folder)),
            )
            print(f"{name}: {logits.shape[0]} positions, {COLUMNS} of {logits.shape[1]} columns")


if __name__ == "__main__":
    main()
