"""How well the loss of a variant is told before it is written: what an allocation goes by, beside what is measured.

    python benchmarks/allocation.py FOLDER TEXT [--target gguf] [--tokens 512] [--single 24] [--bits 5 6]

The sensitivity is measured with the built-in text, as a build does; TEXT judges it, by the proof's reference with the
rows that the target's own writer makes. First some matrices are rounded alone: the rank correlation (Spearman) of what
was told with what they lose. Then whole models are, each to as many bits as was asked: as chosen, as chosen more
evenly, and by the rule of the largest scheme within those bits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from quality import compare, from_reference
from quality_subject import InMemory, Subject, subject_of

from edgepack_packager import targets
from edgepack_packager.allocation import Allocator, goals, sensitivity
from edgepack_packager.checkpoint.weights import Float32, row_blocks
from edgepack_packager.targets import Model, Request, Target


def main() -> None:
    """Print both tables, in Markdown, and what the measure took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("text", type=Path)
    parser.add_argument("--target", default="gguf")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--single", type=int, default=24, help="matrices that are rounded alone")
    parser.add_argument("--bits", type=float, nargs="+", default=[5, 6])
    asked = parser.parse_args()
    subject = subject_of("model", asked.folder, asked.text, asked.tokens)
    target, began = targets.find(asked.target), time.process_time()
    passes, model = subject.passes, subject.calibrated
    counted = time.process_time()
    measured = sensitivity.measure(subject.weights, model, sensitivity.texts(passes))
    gained = time.process_time()
    allocator = Allocator(model, subject.weights, measured)
    request = Request(target, "", target.scheme("q4", model), "calibrated", called="fit")
    allocator.allocate(request, goals.Bits("", asked.bits[0]))
    chosen = time.process_time()
    spent = ", ".join(
        f"{name} {stop - start:.0f}"
        for name, start, stop in (
            ("statistics", began, counted),
            ("divergences", counted, gained),
            (target.name, gained, chosen),
        )
    )
    print(f"CPU s: {spent}")
    print(f"bands {sum(measured.bands.values()):.3f}, roles {sum(measured.roles.values()):.3f}")
    if asked.single:
        _single(subject, model, target, measured, asked.single)
    print("\n| bits | choice | told | measured |\n|---:|---|---:|---:|")
    for bits in asked.bits:
        goal = goals.Bits("", bits)
        choices = {"by matrix": allocator.allocate(request, goal), "even": allocator.evened().allocate(request, goal)}
        if scheme := allocator.scheme(request, goal):
            choices[scheme.scheme] = scheme
        for name, made in choices.items():
            found = _kl(subject, model, target, made.request.forms)
            told = f"{made.written.bits(model.decoder)} | {name} | {made.loss:.4f}"
            print(f"| {told} | {found:.4f} |", flush=True)


def _single(subject: Subject, model: Model, target: Target, measured: sensitivity.Sensitivity, count: int) -> None:
    """Print the rank correlation of some matrices' losses, in the smallest form of each."""
    slots = target.slots(model.decoder, model.dtype)
    some = [slots[index * len(slots) // count] for index in range(count)] if count < len(slots) else slots
    told, found = [], []
    for slot in some:
        form = next(iter(slot.forms))
        told.append(sensitivity.losses(measured, sensitivity.errors(target, model, subject.weights, slot))[form])
        found.append(_kl(subject, model, target, dict.fromkeys(slot.tensors, form)))
        print(f"{slot.tensors[0]} {form} {told[-1]:.5f} {found[-1]:.5f}", flush=True)
    ranks = [np.argsort(np.argsort(each)) for each in (told, found)]
    print(
        f"rank correlation of {len(some)} matrices: {np.corrcoef(*ranks)[0, 1]:.2f}, "
        f"sums {sum(told):.4f} {sum(found):.4f}"
    )


def _kl(subject: Subject, model: Model, target: Target, forms: Mapping[str, str]) -> float:
    tensors = dict(subject.weights.tensors)
    for name, form in forms.items():
        tensors[name] = np.concatenate([target.rounded(model, name, rows, form) for rows in _blocks(tensors[name])])
    rounded = InMemory(model.decoder, "f32", tensors)
    logits = (from_reference(rounded, window) for window in subject.windows)
    return float(compare(subject.weights, subject.windows, subject.states, logits)[0].mean())


def _blocks(rows: Float32) -> list[Float32]:
    return [rows[start:stop] for start, stop in row_blocks(rows.shape)]


if __name__ == "__main__":
    main()
