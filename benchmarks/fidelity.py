"""How far each tool's payloads are from the model: edgepack's targets, and the converter that each format has anyway.

    python benchmarks/fidelity.py --scratch /tmp/fidelity --peers mlx-lm genai llama.cpp --write docs/fidelity.md

Random checkpoints of every family go through every tool, and 320 tokens through what it wrote; the reference of the
proof says what the logits should be. A peer gets a virtual environment under --scratch, unless --python names an
interpreter that has its packages. Figures are kept under --scratch, so that a second run goes on; delete
SCRATCH/results/FAMILY.* to measure a family again.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import fidelity_page
import msgspec
import numpy as np
from fidelity_models import SPECIMENS, TOKENS, VOCABULARY, make
from fidelity_page import CASES, Result, cases
from fidelity_tools import (
    PACKAGES,
    Edgepack,
    Genai,
    LlamaCpp,
    MlxLm,
    Tool,
    ToolError,
    context_of,
    empty,
    environment,
    llama_cpp_source,
)

from edgepack_packager import families, reference
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.proof import compare


def main() -> None:
    """Measure what is not measured yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--families", nargs="+", choices=sorted(SPECIMENS), default=list(SPECIMENS))
    parser.add_argument("--peers", nargs="*", choices=sorted(PACKAGES), default=[])
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PATH", help="an interpreter for a peer")
    parser.add_argument("--sdist", type=Path, help="xllamacpp's source distribution, which is fetched without this")
    parser.add_argument("--write", type=Path, help="the page")
    asked = parser.parse_args()
    tools = list(_tools(asked.peers, dict(pair.split("=", 1) for pair in asked.python), asked.sdist, asked.scratch))
    results = [result for family in asked.families for result in _family(family, tools, asked.scratch)]
    if asked.write:
        fidelity_page.write(asked.write, results, [tool.name for tool in tools])


def _tools(peers: Sequence[str], pythons: dict[str, str], sdist: Path | None, scratch: Path) -> Iterator[Tool]:
    """Yield edgepack's targets, each followed by the peer of its format."""
    python = {peer: pythons.get(peer) or environment(peer, scratch) for peer in peers}
    yield Edgepack("gguf")
    if "llama.cpp" in peers:
        yield LlamaCpp(python["llama.cpp"], llama_cpp_source(sdist, scratch))
    yield Edgepack("onnx")
    if "genai" in peers:
        yield Genai(python["genai"])
    yield Edgepack("mlx")
    if "mlx-lm" in peers:
        yield MlxLm(python["mlx-lm"])


def _family(family: str, tools: Sequence[Tool], scratch: Path) -> Iterator[Result]:
    specimen, checkpoint = SPECIMENS[family], scratch / "models" / family
    if not checkpoint.exists():
        make(specimen, empty(checkpoint))
    empty(scratch / "run")
    for case in cases(family):
        prompt, first = _prompt(specimen.boundary, case)
        expected = _reference(checkpoint, prompt)
        for tool in tools:
            place = scratch / "results" / f"{family}.{tool.name.replace(' ', '-')}.{case}.json"
            if not place.exists():
                result = _measure(Result(family, tool.name, case), tool, checkpoint, prompt, expected, first, scratch)
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
                print(*(value for value in msgspec.structs.astuple(result) if value is not None), flush=True)
            yield msgspec.json.decode(place.read_bytes(), type=Result)


def _prompt(boundary: int | None, case: str) -> tuple[list[int], int]:
    """Return the tokens of a case, and the first whose logits count."""
    # Without the tokenizer's three special tokens: the lowest ids.
    ids: list[int] = np.random.default_rng(0).integers(3, VOCABULARY, TOKENS).tolist()
    if case == "below":
        return ids[:boundary], 0
    return ids, (boundary or 0) if case == "past" else 0


def _reference(folder: Path, prompt: Sequence[int]) -> Float32:
    """Return what transformers computes, which rotates by the length of the sequence that it sees."""
    with open_checkpoint(folder) as checkpoint:
        return reference.logits(families.open_model(checkpoint, context_of(folder, prompt)), prompt)


def _measure(
    result: Result, tool: Tool, checkpoint: Path, prompt: Sequence[int], expected: Float32, first: int, scratch: Path
) -> Result:
    """Return the result with what the tool's logits, from the first that counts, are from the expected ones."""
    precision = CASES[result.case]
    run_folder = scratch / "run" / f"{tool.name}.{precision}"
    run_folder.mkdir(exist_ok=True)
    if precision not in tool.schemes:
        return result
    try:
        run = tool.run(checkpoint, precision, prompt, run_folder)
        if run.logits.shape != expected.shape or not np.isfinite(run.logits).all():
            raise ToolError(f"its logits are not finite numbers of the shape {list(expected.shape)}")
    except ToolError as error:
        return msgspec.structs.replace(result, reason=_reason(error, scratch))
    rows = run.logits[first:], expected[first:]
    if precision == "f32":
        figures = {"nmse": compare.nmse(*rows)}
    else:
        lost = compare.positions(*rows, prompt[first:])
        figures = {"kl": float(lost.kl.mean()), "top1": float(lost.same.mean())}
    return msgspec.structs.replace(result, scheme=run.scheme, engine=run.engine, **figures)


def _reason(error: ToolError, scratch: Path) -> str:
    """Return why there is no figure, without the places and times of this run, and not at any length."""
    text = re.sub(rf"^.*\[ERROR\] - |{re.escape(str(scratch))}/((run/[^/]*|models)/)?", "", str(error))
    return textwrap.shorten(text, 320, placeholder=" ...")


if __name__ == "__main__":
    main()
