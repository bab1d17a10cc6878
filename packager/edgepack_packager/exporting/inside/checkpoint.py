"""What every exporter's program does first, in its environment: limits, the checkpoint by transformers, its logits.

Nothing of edgepack is there, and nothing of this is imported by it.
"""

import json
import resource
import sys
from importlib.metadata import version
from pathlib import Path


def read_job() -> dict:
    """Return the job that the first argument names, and keep to its limits: address space, a file's size, no core."""
    job: dict = json.loads(Path(sys.argv[1]).read_bytes())
    limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": job["largest"]}
    if sys.platform == "linux":
        limits["RLIMIT_AS"] = job["memory"]
    for name, most in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    return job


def load(job):
    """Return the checkpoint's model in float32 and the names of the tensors that its class has no place for.

    Nothing of it is code, and none of its weights is made up.
    """
    import torch
    from transformers import AutoModelForCausalLM

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
    return model, sorted(unused(model, Path(job["source"])))


def unused(model, source):
    """Yield the tensors of a checkpoint that its class has no place for, such as the masks that an old GPT-2 kept.

    Classes are told to be silent of some, so that the names are compared: with the prefix of the base model or without.
    """
    from safetensors import safe_open

    prefix = f"{model.base_model_prefix}."
    held = {name.removeprefix(prefix) for name in model.state_dict()}
    for path in source.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            yield from (name for name in file.keys() if name.removeprefix(prefix) not in held)  # noqa: SIM118


def write_logits(model, job) -> None:
    """Write the logits of all ids at once and without a cache: float32 [n, n_vocab]."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([job["ids"]]), use_cache=False).logits[0]
    logits.to(torch.float32).numpy().astype("<f4").tofile(Path(job["out"]) / "logits")


def write_facts(model, job, packages, left) -> None:
    """Write the versions of packages, the exporter's first, the model's elements, and the tensors without a place."""
    facts = {
        "packages": {name: version(name) for name in packages},
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "unused": left,
    }
    (Path(job["out"]) / "facts.json").write_text(json.dumps(facts))


def run(main) -> None:
    """Run a program; what a user reads of an error is one line."""
    try:
        main()
    except Exception as error:
        said = " ".join(str(error).split())
        raise SystemExit(f"{type(error).__name__}: {said[:300]}") from None
