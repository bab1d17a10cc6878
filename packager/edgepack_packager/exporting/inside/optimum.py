"""Runs in the environment of optimum, alone: ``python -I optimum.py JOB.json``. Nothing of edgepack is there.

Writes into the job's folder: ``model.onnx`` and ``model.onnx.data``, ``facts.json``, and ``logits``: transformers',
float32 [n, n_vocab], of all ids at once and without a cache.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

TASK = "text-generation-with-past"


def main() -> None:
    """Read the job, load the checkpoint with transformers, compute its logits, and export it."""
    job = json.loads(Path(sys.argv[1]).read_bytes())
    limit(job)
    out = Path(job["out"])
    import torch
    from optimum.exporters.onnx import model_configs  # noqa: F401  # what registers the types that there are
    from optimum.exporters.tasks import TasksManager
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = AutoConfig.from_pretrained(job["source"], local_files_only=True, trust_remote_code=False).model_type
    if kind not in TasksManager.get_supported_model_type_for_task(TASK, exporter="onnx"):
        raise SystemExit(f"it exports no model of the type {kind!r} with a KV cache")
    torch.set_num_threads(job["threads"])
    model, told = AutoModelForCausalLM.from_pretrained(
        job["source"],
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    lacking = sorted({*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])})
    if lacking:
        raise SystemExit(f"the checkpoint lacks {lacking[0]}, with {len(lacking) - 1} more tensors that its class has")
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([job["ids"]]), use_cache=False).logits[0]
    logits.to(torch.float32).numpy().astype("<f4").tofile(out / "logits")
    export(model, out)
    packages = ("optimum-onnx", "optimum", "transformers", "torch", "onnx")
    facts = {
        "packages": {name: version(name) for name in packages},
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "unused": sorted(told["unexpected_keys"])[:100],
    }
    (out / "facts.json").write_text(json.dumps(facts))


def export(model, out: Path) -> None:  # type: ignore[no-untyped-def]  # transformers' class, which is not here
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


def limit(job: dict[str, int]) -> None:
    """Bound what this process may take: its address space, a file's size, and no core dump."""
    import resource

    limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": job["largest"]}
    if sys.platform == "linux":
        limits["RLIMIT_AS"] = job["memory"]
    for name, most in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # its last line is what a user reads
        raise SystemExit(f"{type(error).__name__}: {error}") from None
