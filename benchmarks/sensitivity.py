"""Where 4 bits hurt a trained model: its loss with the matrices of one kind rounded, and all others as they are.

    python benchmarks/sensitivity.py FOLDER TEXT [--tokens 512]

Computed by the proof's reference with the proof's own rule of plain 4 bits (signed, blocks of 32). SmolLM2: 15 CPU
seconds for 512 tokens and a kind, 540 MB.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from quality import compare, from_reference
from quality_subject import InMemory, subject_of

from edgepack.bundle.decoder import Decoder
from edgepack_packager.proof.costs import kept
from edgepack_packager.targets import Form

FOUR_BITS = Form("signed", 4, 32, "f32")
EXTRA_BITS = 4
"""That 8 bits take beyond 4: what a megabyte of the last column is spent on."""


def main() -> None:
    """Print the table, in Markdown, the kinds that repay their bytes best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    asked = parser.parse_args()
    subject = subject_of("model", asked.folder, asked.text, asked.tokens)
    print("| matrix | million weights | KL | KL for a MB of 4 bits more |\n|---|---:|---:|---:|")
    rows = []
    for kind, names in _kinds(subject.weights.decoder).items():
        rounded = subject.weights.tensors | {name: kept(FOUR_BITS, subject.weights.tensors[name]) for name in names}
        weights = InMemory(subject.weights.decoder, "f32", rounded)
        logits = (from_reference(weights, window) for window in subject.windows)
        kl = float(compare(subject.weights, subject.windows, subject.states, logits)[0].mean())
        count = sum(subject.weights.tensors[name].size for name in names)
        rows.append((kl / (count * EXTRA_BITS / 8e6), f"| {kind} | {count / 1e6:.1f} | {kl:.3f} |"))
    for each, line in sorted(rows, reverse=True):
        print(f"{line} {each:.3f} |")


def _kinds(decoder: Decoder) -> dict[str, Sequence[str]]:
    """Return the matrices by kind, those of the last layer, and all."""
    matrices = [name for name, shape in decoder.tensors() if len(shape) == 2]
    last = f"layers.{decoder.n_layers - 1}."
    kinds: dict[str, list[str]] = {}
    for name in matrices:
        kinds.setdefault(name.split(".", 2)[-1], []).append(name)
    return {**kinds, "the last layer": [name for name in matrices if name.startswith(last)], "all": matrices}


if __name__ == "__main__":
    main()
