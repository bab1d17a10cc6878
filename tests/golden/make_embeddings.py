"""Makes the golden vectors: transformers in fp32, pooled as sentence-transformers does, over the models that embed.

Run it where torch and transformers are installed (the ``oracle`` extra): python make_embeddings.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import embedding_models  # noqa: E402
import golden_models  # noqa: E402
import oracle  # noqa: E402

from edgepack_packager.text import sentence_transformers  # noqa: E402


def main() -> None:
    """Write one archive: the vector of each text alone and behind each prompt, and the digests of the weights."""
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in embedding_models.MODELS.items():
            folder = make(Path(scratch, name))
            said, dense = sentence_transformers.read(folder, embedding_models.hidden_size(folder), ())
            asked = [("", ""), *said.prompts.items()]
            found[f"{name}.weights"] = np.array(golden_models.digest(folder))
            for prompt, before in asked:
                vectors = [
                    oracle.vector(folder, before + text, said.pooling, said.normalized, dense)
                    for text in embedding_models.TEXTS
                ]
                found[f"{name}.{prompt}"] = np.stack(vectors)
            print(f"{name}: {len(asked)} times {len(embedding_models.TEXTS)} texts")
    np.savez(HERE / "embeddings.npz", **found)


if __name__ == "__main__":
    main()
