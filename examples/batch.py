"""A batch job: questions in, answers out, a JSON object a line. Started again, it goes on where it stopped.

python examples/batch.py demo.edgepack questions.jsonl answers.jsonl --seed 7

A question is {"messages": [...]}, with max_tokens and temperature if it likes; one that is refused has its error for
an answer. Each is on the disk before the next begins: after Ctrl-C or a loss of power, run the same command again. The
seed of each is --seed plus its number, and it takes over nothing of the cache that could round otherwise, so that a job
in two parts writes the same bytes as one.
"""

import argparse
import fcntl
import hashlib
import os
import sys
from contextlib import suppress
from typing import Any, BinaryIO

import msgspec

import edgepack


class Question(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    temperature: float | None = None


class Answer(msgspec.Struct, omit_defaults=True):
    number: int
    variant: str
    key: str  # a digest of the question, the seed and the bundle
    text: str | None = None
    finish_reason: str | None = None
    error: str | None = None


def answer(model: edgepack.Model, number: int, question: bytes, seed: int) -> Answer:
    said = Answer(number, model.variant.id, key(model, question, seed))
    try:
        q = msgspec.json.decode(question, type=Question)
        result = model.chat(
            q.messages, max_tokens=q.max_tokens, temperature=q.temperature, seed=seed + number, reuse="exact"
        )
        said.text, said.finish_reason = result.text, result.finish_reason
    except (msgspec.DecodeError, edgepack.UsageError, edgepack.ContextError) as error:  # an EngineError ends the job
        said.error = str(error)
    return said


def key(model: edgepack.Model, question: bytes, seed: int) -> str:
    return hashlib.sha256(f"{model.bundle_id} {seed} ".encode() + question).hexdigest()[:16]


def answered(file: BinaryIO) -> list[Answer]:
    """Return the answers that a file has whole. One may be half written at its end; anything else ends the program."""
    file.seek(0)
    whole, _, half = file.read().rpartition(b"\n")
    if half.startswith(b'{"number":'[: len(half)]):
        with suppress(msgspec.DecodeError):
            return msgspec.json.Decoder(Answer).decode_lines(whole)
    sys.exit(f"{file.name} holds something else than answers. Name another file.")


def run(model: edgepack.Model, questions: list[bytes], done: list[Answer], file: BinaryIO, seed: int) -> str:
    """Append the answers that a file lacks, and return what there is to say of it."""
    if [each.key for each in done] != [key(model, question, seed) for question in questions[: len(done)]]:
        sys.exit(f"{file.name} answers other questions, or with another seed or bundle. Name another file.")
    file.truncate(file.seek(0) + file.read().rfind(b"\n") + 1)
    refused = 0
    for number, question in enumerate(questions[len(done) :], len(done) + 1):
        said = answer(model, number, question, seed)
        refused += said.error is not None
        file.write(msgspec.json.encode(said) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return f"{len(questions)} questions, {len(done)} of them answered before, {refused} refused."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer a file of questions.")
    for name in ("bundle", "questions", "answers"):
        parser.add_argument(name)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        with open(given.questions, "rb") as asked, open(given.answers, "a+b") as out:
            lines = [line.strip() for line in asked if line.strip()]
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = answered(out)
            with edgepack.load(given.bundle, variant=there[0].variant if there else None) as loaded:
                print(run(loaded, lines, there, out, given.seed), file=sys.stderr)
    except BlockingIOError:
        sys.exit(f"{given.answers} is being written by another job.")
    except (edgepack.EdgepackError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
