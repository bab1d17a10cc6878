"""An app that moves from a device to a cluster by one configured string: the same calls, options and errors.

python examples/anywhere.py demo.edgepack "What is a token?" "What is edgepack?"
python examples/anywhere.py http://127.0.0.1:8080 "What is a token?"        # edgepack serve demo.edgepack
python examples/anywhere.py http://gpu.example:8000 "What is a token?"      # vLLM with the exported folder

An installed app has the string in its settings. EDGEPACK_API_KEY is the server's token or key.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import edgepack


def told(model: edgepack.LanguageModel) -> str:
    """Say what answers: the one place where the app looks at what the string was."""
    setup = model.setup
    if isinstance(setup, edgepack.Served):
        return f"{setup.model} on {setup.url}, {setup.server}"
    return f"{setup.variant} on this device, {setup.backend}"


def answers(model: edgepack.LanguageModel, questions: Sequence[str]) -> Iterator[str]:
    """Yield a conversation piece by piece. What is too long is left out, here as there."""
    chat = model.chat(temperature=0, max_tokens=60)
    for question in questions:
        yield f"> {question}\n"
        try:
            with chat.stream(question) as stream:
                yield from (chunk.text for chunk in stream)
        except edgepack.PromptTooLongError:
            yield "That is too long for me."
        yield "\n"


def main(where: str, questions: Sequence[str]) -> int:
    """Answer the questions on standard output; return an exit code."""
    try:
        with edgepack.open(where) as model:
            print(f"[{told(model)}]", file=sys.stderr)
            for piece in answers(model, questions):
                print(piece, end="", flush=True)
    except edgepack.EdgepackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer questions, wherever the model is.")
    parser.add_argument("where", help="a bundle, the name of an installed one, or the address of a server")
    parser.add_argument("questions", nargs="+", metavar="question")
    given = parser.parse_args()
    sys.exit(main(given.where, given.questions))
