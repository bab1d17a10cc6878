"""What a bundle's draft model brings: CPU milliseconds a token without it and with it, in turns.

    edgepack build smollm2-135m --draft smollm2-135m --quant q8 --out itself.edgepack
    python benchmarks/draft.py itself.edgepack --backend gguf onnx --threads 1

Each of ``--rounds`` answers the prompts that ``edgepack tune`` takes, greedily, without the draft and with it. The time
is that of all tokens after the first, the draft's reading of the prompt included. A model that drafts for itself shows
what the machinery costs and how often two sessions of one model agree, and can gain nothing.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import process_time

import edgepack
from edgepack import Model
from edgepack.tuning.drafts import prompts


def answers(model: Model, tokens: int, rounds: int) -> None:
    """Print both costs, medians with their ranges, their ratio, and how many guesses came true."""
    costs: dict[bool, list[float]] = {False: [], True: []}
    ratios, drafted, accepted, same, pairs = [], 0, 0, 0, 0
    for number in range(rounds + 1):  # the first warms up
        for prompt in prompts(model.manifest):
            found = {}
            for draft in (number % 2 == 0, number % 2 == 1):
                with model.stream(prompt, max_tokens=tokens, temperature=0, draft=draft, reuse="exact") as stream:
                    next(stream)
                    begun = process_time()
                    for _ in stream:
                        pass
                cost, result = process_time() - begun, stream.result
                found[draft] = result, 1000 * cost / max(1, result.usage.completion_tokens - 1)
            if not number:
                continue
            for draft, (_, cost) in found.items():
                costs[draft].append(cost)
            ratios.append(found[True][1] / found[False][1])
            drafted += found[True][0].usage.drafted_tokens
            accepted += found[True][0].usage.accepted_tokens
            same += found[True][0].token_ids == found[False][0].token_ids
            pairs += 1
    for name, each in (("without", costs[False]), ("with", costs[True]), ("ratio", ratios)):
        print(f"  {name:8} {median(each):7.2f} ({min(each):.2f} to {max(each):.2f})")
    print(f"  {accepted} of {drafted} guesses right, {same} of {pairs} answers the same token by token", flush=True)


def main() -> None:
    """Measure each backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--backend", nargs="+", default=["gguf"])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    for backend in asked.backend:
        with edgepack.load(asked.bundle, backend, threads=asked.threads, draft=True) as model:
            print(f"{backend}: {model.variant.id} with {model.setup.draft}, CPU ms a token")
            answers(model, asked.tokens, asked.rounds)


if __name__ == "__main__":
    main()
