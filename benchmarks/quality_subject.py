"""A trained model in memory with the text that it is judged on, for ``quality.py`` and its like."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tokenizers

from edgepack.bundle.decoder import Decoder
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import allocation, calibration, families, reference, source, targets
from edgepack_packager.allocation import Allocator, judging, sensitivity
from edgepack_packager.allocation.goals import Goal
from edgepack_packager.allocation.judging import Judge
from edgepack_packager.calibration.feedback import Moments
from edgepack_packager.calibration.text import BUILT_IN, Corpus
from edgepack_packager.checkpoint import CONFIG
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.seal import text_of, tokenizer_of
from edgepack_packager.source import Source
from edgepack_packager.targets import Model, Request
from edgepack_packager.text import golden, read_text
from edgepack_packager.text.compiled import compiled
from edgepack_packager.write import write

WINDOW = 1024


@dataclass(frozen=True, slots=True)
class InMemory:
    """A decoder's tensors, read once."""

    decoder: Decoder
    dtype: str
    tensors: dict[str, Float32]

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows of a tensor."""
        return self.tensors[name][start:stop]


@dataclass(frozen=True)
class Subject:
    """A model, the windows of token ids that it is judged on, and its normed states after each."""

    name: str
    source: Source
    model: Model
    weights: InMemory
    windows: list[list[int]]
    states: list[Float32]
    text: str = BUILT_IN

    @cached_property
    def told(self) -> tuple[Corpus, list[int], Tokenizer]:
        """The calibration's text, its token ids, and the tokenizer."""
        side, corpus = compiled(text_of(self.model)), calibration.text.read(self.text)
        tokenizer = tokenizer_of(side)
        chat = golden.vectors(side, tokenizer).chat if corpus.conversations else None
        return corpus, calibration.told(corpus, tokenizer, side, chat), tokenizer

    @cached_property
    def passes(self) -> list[list[Sequence[int]]]:
        """The windows of the calibration's text, which are not what it is judged by."""
        corpus, told, _ = self.told
        return calibration.passes(corpus, told, self.model.decoder.context)

    @cached_property
    def calibrated(self) -> Model:
        """The model with what its columns count, and what errors are made good by."""
        matrices = [name for name, shape in self.model.decoder.tensors() if len(shape) == 2 and name != "embedding"]
        moments = Moments(Path(self._scratch.name) / "moments", matrices)
        counts = calibration.importance(self.weights, self.passes, also=moments.see)
        return replace(self.model, importance=counts, feedback=moments.finish())

    @cached_property
    def _scratch(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory()

    @cached_property
    def allocator(self) -> Allocator:
        """What chooses forms for it."""
        measured = sensitivity.measure(self.weights, self.calibrated, sensitivity.texts(self.passes))
        return Allocator(self.calibrated, self.weights, measured)

    def allocated(self, request: Request, goal: Goal) -> Request:
        """Return a request with the forms that a build chooses for a goal."""
        choices = [each.allocate(request, goal) for each in (self.allocator, self.allocator.evened())]
        return allocation.better(self._judge, choices, self.allocator.scheme(request, goal)).request

    @cached_property
    def _judge(self) -> Judge:
        _, told, tokenizer = self.told
        return Judge(self.weights, self.calibrated, judging.texts(told, tokenizer, self.model.decoder))

    def gguf(self, scratch: Path) -> Path:
        """Return it as a GGUF file of the source's own element type, which is written where it is missing."""
        return self._in_own_type("gguf", scratch) / "model.gguf"

    def header_bytes(self, scratch: Path) -> int:
        """Return the bytes of a GGUF file of it before its tensors' data: mostly the vocabulary."""
        kind = self.model.dtype
        data = targets.find("gguf").measure(self.model.decoder, kind, kind).data_bytes
        return self.gguf(scratch).stat().st_size - data

    def checkpoint(self, scratch: Path) -> Path:
        """Return its checkpoint; of one that came in a GGUF file, a folder of what was read there."""
        if self.source.file is None:
            return self.source.folder
        folder = self._in_own_type("mlx", scratch)  # which has a checkpoint's config and names
        for text in self.source.folder.glob("*token*.json"):
            shutil.copy(text, folder)
        return folder

    def _in_own_type(self, target: str, scratch: Path) -> Path:
        request = Request(targets.find(target), self.model.dtype, self.model.dtype)
        folder = scratch / self.name.replace(" ", "-")
        if not (folder / request.id).exists():
            write(self.weights, [request], folder, self.model)
        return folder / request.id


def subject_of(name: str, model: str, text: Path, tokens: int) -> Subject:
    found = source.find(model)
    folder = found.folder
    config = read_object(folder / CONFIG)
    with source.open_weights(found) as checkpoint:
        read = families.open_model(checkpoint)
        decoder = read.decoder
        weights = in_memory(read)
    side = read_text(folder, config, decoder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(_prose(text), add_special_tokens=False).ids[:tokens]
    width = min(WINDOW, decoder.context)
    windows = [ids[start : start + width] for start in range(0, len(ids), width)]
    states = [reference.hidden(weights, window)[0] for window in windows]
    return Subject(name, found, Model(name, decoder, weights.dtype, config, side), weights, windows, states)


def _prose(path: Path) -> str:
    """Return a text file's text; of JSON lines, the questions with their answers."""
    if path.suffix != ".jsonl":
        return path.read_text("utf-8")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return "\n".join(f"{line['question']} {line['answer']}" for line in lines if "question" in line)


def in_memory(weights: Weights) -> InMemory:
    tensors = {name: np.array(weights.rows(name, 0, shape[0])) for name, shape in weights.decoder.tensors()}
    return InMemory(weights.decoder, weights.dtype, tensors)
