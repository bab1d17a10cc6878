"""The first hour with a trained model, as a user has it: build it with no options, ask it, talk with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from footprint import most_resident

import edgepack

pytestmark = pytest.mark.real

TURNS = (
    "Hi! Who are you?",
    "What is the capital of France?",
    "And of Japan?",
    "Name three fruits.",
    "Which of them is yellow?",
    "Write one sentence about the sea.",
    "What is 3 + 4?",
    "Say good night in French.",
    "What did I ask you first?",
    "Thank you, goodbye!",
)
BUILD_MB = 600


def edgepack_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "edgepack", *map(str, arguments)]


@pytest.fixture(scope="module")
def bundle(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``edgepack build FOLDER`` makes."""
    place = tmp_path_factory.mktemp("command")
    assert most_resident(edgepack_command("build", smollm2), place / "log", cwd=place) < BUILD_MB * 1024
    return place / "smollm2.edgepack"


def test_three_variants_are_proven(bundle: Path) -> None:
    variants = edgepack.open_bundle(bundle).manifest.variants
    assert sorted(variant.target for variant in variants if variant.proof) == ["gguf", "mlx", "onnx"]


def test_it_answers(bundle: Path) -> None:
    """With words; which ones, a model of this size decides by a hair: tests/real/test_facts.py asks twenty times."""
    command = edgepack_command("run", bundle, "Say hello.", "--temperature", "0", "--max-tokens", "16", "--json")
    done = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(done.stdout)["text"].strip()


@pytest.mark.parametrize("backend", ["gguf", "mlx", "onnx"])
def test_a_chat_of_ten_turns(bundle: Path, backend: str) -> None:
    with edgepack.load(bundle, backend=backend, context=2048) as model:
        chat = model.chat()
        for asked in TURNS:
            answer = chat.send(asked, temperature=0, max_tokens=24)
            assert answer.text.strip()
            assert "<|im_" not in answer.text
        assert answer.usage.cached_tokens > answer.usage.prompt_tokens / 2  # only what is new is evaluated
