"""What a model loses less where the errors of its levels are made good in the columns that are rounded after them.

    python benchmarks/feedback.py FOLDER TEXT [--tokens 1024] [--forms onnx:int4 mlx:4bit gguf:q4_0]
        [--damp 0.01 0.3 1] [--width 2048] [--calibrate TEXT]

Rows are those of a calibrated variant's writer, without and with what builds make good; ``--damp`` is the share of
each column's own moment that is added to it, ``--width`` the columns whose moments are kept together. Embedding and
head stay exact. The text of the calibration is the built-in one, or that of --calibrate; TEXT judges, by the reference
with the numbers that a payload would hold. SmolLM2: 50 CPU seconds for a row.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from quality import compare, from_reference
from quality_subject import InMemory, Subject, subject_of

from edgepack_packager import calibration, targets
from edgepack_packager.calibration import feedback
from edgepack_packager.calibration.text import BUILT_IN
from edgepack_packager.targets.feedback import Feedback


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--forms", nargs="+", default=["onnx:int4", "mlx:4bit", "gguf:q4_0"])
    parser.add_argument("--damp", nargs="+", type=float, default=[feedback.DAMP])
    parser.add_argument("--width", nargs="+", type=int, default=[feedback.WIDTH])
    parser.add_argument("--calibrate", default=BUILT_IN)
    asked = parser.parse_args()
    subject = replace(subject_of("model", asked.folder, asked.text, asked.tokens), text=asked.calibrate)
    print("| form | damp | width | KL | top-1 | perplexity |\n|---|---:|---:|---:|---:|---:|")
    for form in asked.forms:
        _print(subject, form, "no feedback | ", {})
    for damp in asked.damp:
        for width in asked.width:
            feedback.DAMP, feedback.WIDTH = damp, width
            with TemporaryDirectory() as folder:
                moments = feedback.Moments(Path(folder) / "moments", _matrices(subject))
                calibration.importance(subject.weights, subject.passes, also=moments.see)
                found = moments.finish()
                for form in asked.forms:
                    _print(subject, form, f"{damp:g} | {width}", found)


def _print(subject: Subject, form: str, how: str, found: Mapping[str, Feedback]) -> None:
    target, _, name = form.partition(":")
    model, chosen = replace(subject.calibrated, feedback=found), targets.find(target)
    source = subject.weights.tensors
    rounded = {each: chosen.rounded(model, each, source[each], name) for each in _matrices(subject)}
    weights = InMemory(model.decoder, "f32", source | rounded)
    logits = (from_reference(weights, window) for window in subject.windows)
    kl, same, loss, _ = compare(subject.weights, subject.windows, subject.states, logits)
    figures = f"{kl.mean():.4f} ± {kl.std() / np.sqrt(len(kl)):.4f} | {same.mean():.1%} | {np.exp(loss.mean()):.2f}"
    print(f"| {form} | {how} | {figures} |", flush=True)


def _matrices(subject: Subject) -> list[str]:
    """Return the names of all matrices of layers."""
    return [name for name, shape in subject.model.decoder.tensors() if len(shape) == 2 and name.startswith("layers.")]


if __name__ == "__main__":
    main()
