"""The memory that a plan predicts and the memory that a process took, for each variant at each context.

    python benchmarks/memory.py BUNDLE [--variants gguf-f32 onnx-int4] [--contexts 64 1024] [--kv-cache q8]
        [--json memory.json]

The process does what an application does: it loads the variant, and fills the context in four turns, each with the text
before it as its beginning, and the last eight tokens by generating them; or it makes a vector of such a text. The text
is README.md and docs/sdk.md, whose words touch many rows of an embedding. Its peak resident memory is compared with
``Memory.peak`` of the plan. On Linux that is VmHWM of the process: ``ru_maxrss`` starts with the parent's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepack.bundle.files import Bundle, open_bundle
from edgepack.device.memory import MIB, PROCESS
from edgepack.device.planning import Candidate
from edgepack.loading import plan

_APPLICATION = """
import sys
import edgepack

bundle, backend, variant, context, kv_cache, *texts = sys.argv[1:]
with edgepack.load(bundle, backend, int(context), kv_cache, variant=variant) as model:
    text = "".join(open(each, encoding="ascii", errors="ignore").read() for each in texts)
    ids, room = model.tokenize(text), int(context) - 8
    assert len(ids) >= room
    if model.manifest.embedding:
        model.embed(model.detokenize(ids[:room]))
    else:
        for turn in range(1, 5):
            model.generate(model.detokenize(ids[: room * turn // 4]), max_tokens=2 * turn, temperature=0)
    if sys.platform == "linux":
        with open("/proc/self/status") as status:
            print(next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM")))
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(peak if sys.platform == "darwin" else peak << 10)
"""
_ROOT = Path(__file__).parents[1]
_TEXTS = (str(_ROOT / "README.md"), str(_ROOT / "docs" / "sdk.md"))
_PARTS = ("weights", "kv_cache", "overhead", "engine", "loading")


def main() -> None:
    """Print a line for each variant and context, in MiB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variants", nargs="+", help="all of the bundle that can run here, without any")
    parser.add_argument("--contexts", nargs="+", type=int, default=[64, 1024])
    parser.add_argument("--kv-cache", help="f32, f16 or q8; what the plan takes, without any")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    bundle = open_bundle(asked.bundle, verify="sizes")
    names = asked.variants or [variant.id for variant in bundle.manifest.variants]
    head = ("variant", "context", "KV", *_PARTS, "process", "predicted", "measured", "ratio")
    print("{:14}{:>8}{:>5}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}{:>10}{:>9}{:>7}".format(*head))
    rows = []
    for name in names:
        for context in asked.contexts:
            candidate = planned(bundle, name, context, asked.kv_cache)
            if candidate.eligible:
                rows.append(row_of(bundle, candidate))
                print(line_of(rows[-1]), flush=True)
            else:
                print(f"{name:14}{context:8}  {candidate.reason}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")


def planned(bundle: Bundle, variant: str, context: int, kv_cache: str | None) -> Candidate:
    """Return the plan's candidate for one variant."""
    backend = bundle.variant(variant).runtime
    made = plan(bundle, backend=backend, variant=variant, context=context, kv_cache=kv_cache)
    return next(candidate for candidate in made.candidates if candidate.variant == variant)


def row_of(bundle: Bundle, candidate: Candidate) -> dict[str, Any]:
    """Run a candidate in a process of its own and return its prediction and its peak, in bytes."""
    memory, peak = candidate.memory, measure(bundle.path, candidate)
    return {
        "variant": candidate.variant,
        "context": candidate.options.context,
        "kv_cache_type": candidate.options.kv_cache,
        **{part: asdict(memory)[part] for part in _PARTS},
        "process": PROCESS,
        "predicted": memory.peak,
        "measured": peak,
        "ratio": peak / memory.peak,
    }


def measure(bundle: Path, candidate: Candidate) -> int:
    """Return the peak resident memory in bytes of a process that loads a candidate and fills its context."""
    options = candidate.options
    arguments = (str(bundle), candidate.runtime, candidate.variant, str(options.context), options.kv_cache, *_TEXTS)
    done = subprocess.run([sys.executable, "-c", _APPLICATION, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{candidate.variant} failed at {options.context} tokens:\n{done.stderr}")
    return int(done.stdout)


def line_of(row: Mapping[str, Any]) -> str:
    """Return a row as text, in MiB."""
    sizes = [row[name] / MIB for name in (*_PARTS, "process", "predicted", "measured")]
    start = f"{row['variant']:14}{row['context']:8}{row['kv_cache_type']:>5}"
    widths = (9, 9, 9, 8, 8, 8, 10, 9)
    return start + "".join(f"{size:{w}.1f}" for size, w in zip(sizes, widths, strict=True)) + f"{row['ratio']:7.3f}"


if __name__ == "__main__":
    main()
