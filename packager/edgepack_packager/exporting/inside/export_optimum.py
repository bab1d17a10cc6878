"""Runs in the environment of optimum, alone: ``python -I export_optimum.py JOB.json``.

Writes into the job's folder: ``model.onnx`` and ``model.onnx.data``, and what ``checkpoint`` does.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import checkpoint

TASK = "text-generation-with-past"


def main() -> None:
    """Read the job, load the checkpoint with transformers, compute its logits, and export it."""
    job = checkpoint.read_job()
    from optimum.exporters.onnx import model_configs  # noqa: F401  # what registers the types that there are
    from optimum.exporters.tasks import TasksManager
    from transformers import AutoConfig

    kind = AutoConfig.from_pretrained(job["source"], local_files_only=True, trust_remote_code=False).model_type
    if kind not in TasksManager.get_supported_model_type_for_task(TASK, exporter="onnx"):
        raise SystemExit(f"it exports no model of the type {kind!r} with a KV cache")
    model, left = checkpoint.load(job)
    checkpoint.write_logits(model, job)
    export(model, Path(job["out"]))
    checkpoint.write_facts(model, job, ("optimum-onnx", "optimum", "transformers", "torch", "onnx"), left)


def export(model, out: Path) -> None:
    """Write the graph with its KV cache as inputs and outputs, and all weights in one file beside it."""
    import onnx
    from optimum.exporters.onnx import onnx_export_from_model

    made = out / "made"
    onnx_export_from_model(model, made, task=TASK, do_validation=False, device="cpu")
    graph = onnx.load(made / "model.onnx")
    # What says where a node came from is of no use to an engine, and may name folders.
    del graph.metadata_props[:], graph.graph.metadata_props[:], graph.graph.value_info[:]
    for node in graph.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    onnx.save_model(
        graph,
        out / "model.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="model.onnx.data",
        size_threshold=1024,
        convert_attribute=False,
    )
    for path in made.iterdir():
        path.unlink()
    made.rmdir()


if __name__ == "__main__":
    checkpoint.run(main)
