"""What a user sees of a quantisation: of twenty simple facts that f16 knows, the default 4 bits know eighteen.

A model of 135 million parameters is erratic, so that f16 is the measure: it answers these at temperature 0, and no
token up to the answer has another within half a nat of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import edgepack
from edgepack_packager.build import Built, Recipe, build

pytestmark = pytest.mark.real

QUESTIONS = {
    "What is the capital of Japan?": "Tokyo",
    "What is the capital of Germany?": "Berlin",
    "What is the capital of England?": "London",
    "What is the capital of Egypt?": "Cairo",
    "What is the capital of China?": "Beijing",
    "What is the capital of Greece?": "Athens",
    "How many days are in a week?": "7",
    "What is the chemical symbol for water?": "H2O",
    "What is the opposite of hot?": "cold",
    "What is the largest ocean on Earth?": "Pacific",
}
BEGINNINGS = {
    "The capital of France is": "Paris",
    "The capital of Italy is": "Rome",
    "The capital of Spain is": "Madrid",
    "January, February, March,": "April",
    "A, B, C, D,": "E",
    "The opposite of up is": "down",
    "There are seven days in a": "week",
    "The Earth revolves around the": "Sun",
    "The first President of the United States was George": "Washington",
    "Romeo and Juliet was written by William": "Shakespeare",
}


@pytest.fixture(scope="module")
def halves(smollm2_off: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The model in f16: the measure of what it knows."""
    return build(str(smollm2_off), Recipe(("gguf",), ("f16",)), tmp_path_factory.mktemp("f16") / "f16.edgepack")


@pytest.fixture(scope="module")
def quarters(smollm2_off: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The model as a build without options makes it."""
    out = tmp_path_factory.mktemp("q4") / "q4.edgepack"
    return build(str(smollm2_off), Recipe(("gguf", "onnx", "mlx"), ("q4",)), out)


def wrong(built: Built, backend: str) -> list[str]:
    """Return what a model says beside what it should have: in chat, and where it continues a text."""
    with edgepack.load(built.path, backend=backend, context=256) as model:
        said = {
            asked: model.chat([{"role": "user", "content": asked}], temperature=0, max_tokens=16).text
            for asked in QUESTIONS
        }
        said |= {begun: model.generate(begun, temperature=0, max_tokens=5).text for begun in BEGINNINGS}
    return [f"{asked} {said[asked]}" for asked, answer in (QUESTIONS | BEGINNINGS).items() if answer not in said[asked]]


def test_there_are_twenty_facts() -> None:
    assert len(QUESTIONS | BEGINNINGS) == 20


def test_f16_knows_them(halves: Built) -> None:
    assert wrong(halves, "gguf") == []


@pytest.mark.parametrize("backend", ["gguf", "onnx", "mlx"])
def test_the_default_knows_eighteen(quarters: Built, backend: str) -> None:
    missed = wrong(quarters, backend)
    assert len(missed) <= 2, missed
