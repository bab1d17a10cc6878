"""An exporter without torch: run as ``python -I fake_exporter.py JOB.json``, it exports that of ``exported_models``.

The model_type of the checkpoint's config.json may name a fault, as "gpt2+position".
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import exported_models
import numpy as np


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_bytes())
    source, out = Path(job["source"]), Path(job["out"])
    config = json.loads((source / "config.json").read_bytes())
    fault = str(config["model_type"]).partition("+")[2]
    tensors = exported_models.weights()
    exported_models.logits(tensors, job["ids"]).tofile(out / "logits")
    if fault == "weight":
        tensors["1.v"][3, 4] *= np.float32(1.01)
    if fault == "row":  # of the embedding, one that the probe does not meet
        tensors["wte"][next(i for i in range(384) if i not in job["ids"])] += np.float32(1)
    exported_models.write_graph(out, tensors, ahead=int(fault == "position"))
    facts = {
        "packages": {"fake-exporter": "1.0", "transformers": "4.0"},
        "parameters": sum(map(np.size, tensors.values())),
        "unused": [],
    }
    if fault == "environment":
        facts["unused"] = [f"{sorted(os.environ)} {sorted(path.name for path in source.iterdir())}"]
    if fault == "network":
        address = (config["host"], config["port"])
        facts["unused"] = [str(socket.socket().connect_ex(address))]
    (out / "facts.json").write_text(json.dumps(facts))
    if fault == "more":
        (out / "setup.py").write_text("")
    if fault == "link":
        (out / "facts.json").unlink()
        (out / "facts.json").symlink_to("/etc/passwd")
    if fault == "large":
        (out / "facts.json").write_text(json.dumps(facts) + " " * (2 << 20))
    if fault == "facts":
        (out / "facts.json").write_text('{"packages": []}')
    if fault == "short":
        (out / "logits").write_bytes(b"1234")
    if fault == "less":
        (out / "model.onnx.data").unlink()
    if fault == "noise":
        (out / "model.onnx").write_bytes(b"noise")
    if fault == "exit":
        raise SystemExit("it cannot export that")
    if fault == "hang":
        time.sleep(600)


if __name__ == "__main__":
    main()
