"""Runs in the environment of mlx-lm, alone: ``python -I export_mlx_lm.py JOB.json``.

Writes into the job's folder: ``config.json`` and ``model.safetensors`` as mlx-lm loads them, and what ``checkpoint``
does.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import checkpoint


def main() -> None:
    """Read the job, compute the logits with transformers, and let mlx-lm spell the weights as its model has them."""
    job = checkpoint.read_job()
    model, left = checkpoint.load(job)
    checkpoint.write_logits(model, job)
    checkpoint.write_facts(model, job, ("mlx-lm", "mlx", "transformers", "torch"), left)
    del model
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    spelled, config = load_model(Path(job["source"]), trust_remote_code=False)
    weights = {name: array.astype(mx.float32) for name, array in tree_flatten(spelled.parameters())}
    out = Path(job["out"])
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    kept = {name: value for name, value in config.items() if not name.startswith("_") and "dtype" not in name}
    (out / "config.json").write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    checkpoint.run(main)
