"""Measure the demo model on the held-out questions: exact match, greedy, for every variant of a bundle.

edgepack build demo -q f32 -q f16 -q q8 -q q4 --out demo-all.edgepack
python examples/demo_model/evaluate.py demo-all.edgepack [--json accuracy.json] [--wrong]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import edgepack

HELD_OUT = Path(__file__).with_name("held_out.jsonl")
KINDS = ("fact", "arithmetic", "unit", "json")


def is_right(kind: str, answer: str, wanted: str) -> bool:
    """JSON answers must be equal as values, all others as text."""
    if kind != "json":
        return answer.strip() == wanted.strip()
    try:
        return bool(json.loads(answer) == json.loads(wanted))
    except json.JSONDecodeError:
        return False


def wrong_answers(bundle: str, variant: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Ask a variant all questions and return those that it gets wrong, with what it said."""
    wrong = []
    with edgepack.load(bundle, variant=variant) as model:
        for row in rows:
            said = model.chat([{"role": "user", "content": row["question"]}], temperature=0, max_tokens=64).text
            if not is_right(row["kind"], said, row["answer"]):
                wrong.append(row | {"said": said})
    return wrong


def main() -> None:
    """Print a table with a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--json", type=Path, help="write the counts here")
    parser.add_argument("--wrong", action="store_true", help="print every wrong answer")
    asked = parser.parse_args()
    rows = [json.loads(line) for line in HELD_OUT.read_text("utf-8").splitlines()]
    total = {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS}
    counts = {}
    print(f"| variant | {' | '.join(f'{kind} ({total[kind]})' for kind in KINDS)} | all ({len(rows)}) |")
    print("| --- |" + " ---: |" * (len(KINDS) + 1))
    for variant in edgepack.open_bundle(asked.bundle).manifest.variants:
        wrong = wrong_answers(asked.bundle, variant.id, rows)
        right = {kind: total[kind] - sum(row["kind"] == kind for row in wrong) for kind in KINDS}
        counts[variant.id] = right | {"all": len(rows) - len(wrong)}
        shares = [100 * right[kind] / total[kind] for kind in KINDS] + [100 * counts[variant.id]["all"] / len(rows)]
        print(f"| {variant.id} | {' | '.join(f'{share:.1f} %' for share in shares)} |", flush=True)
        for row in wrong if asked.wrong else ():
            print(f"    {row['question']} -> {row['said']!r}, not {row['answer']!r}")
    if asked.json:
        asked.json.write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()
