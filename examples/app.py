"""An app in a page: open a bundle, say why this engine was chosen, stream an answer, stop where the user stops.

python examples/app.py demo.edgepack "What is a token?"
"""

from __future__ import annotations

import argparse
import sys

import edgepack


def main(bundle: str, question: str) -> int:
    """Answer one question on standard output; return an exit code."""
    try:
        choice = edgepack.plan(bundle).choice
        print(f"[{choice.variant} on {choice.device}: {choice.reason}]", file=sys.stderr)
        with edgepack.load(bundle) as model, model.stream_chat([{"role": "user", "content": question}]) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)
        print(f"\n[{stream.result.finish_reason}, {stream.result.usage.completion_tokens} tokens]", file=sys.stderr)
    except edgepack.EdgepackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer one question.")
    parser.add_argument("bundle")
    parser.add_argument("question")
    given = parser.parse_args()
    sys.exit(main(given.bundle, given.question))
