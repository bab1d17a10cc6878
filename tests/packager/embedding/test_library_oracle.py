"""What a bundle makes of a text, on every engine, is what the package sentence-transformers makes of it, from the same
folder: loaded in float32 on the processor, and otherwise as it is by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_models import GEMMA, LIMITS, MODELS, PROMPTS, QWEN3, TEXTS, WITH_GELU, make_embedding
from numpy.typing import NDArray
from text_side import write_json
from variants import nmse

import edgepack
from edgepack.errors import PromptTooLongError, UnsupportedModelError, UsageError
from edgepack.pooling import cosine
from edgepack_packager.build import Built, build
from edgepack_packager.recipe import Recipe

pytestmark = pytest.mark.oracle

BACKENDS = ("gguf", "mlx", "onnx")
TASKS = {"query": "task: search result | query: ", "document": "title: none | text: "}
VARIANTS: Mapping[str, Callable[[Path], Path]] = {
    **MODELS,
    "last-plain": partial(make_embedding, normalize=False, begins=True, prompts=TASKS, seed=11),
    "gemma-tasks": partial(
        make_embedding, pooling="mean_tokens", fields=GEMMA, begins=True, prompts=TASKS, seed=12, dense=(160, 64)
    ),
    "gemma-first": partial(make_embedding, pooling="cls_token", fields=GEMMA, begins=True, seed=13, normalize=False),
    "gemma-last": partial(make_embedding, fields=GEMMA, default="query", seed=14),
}
LONG = " ".join(TEXTS) * 2
"""More tokens than an engine takes in a step, and many windows."""

ASKED = (
    *TEXTS,
    LONG,
    " ",
    "  Spaces stand around.  \n",
    "\ttab\r\nlines\n\n",
    "e\u0301 \u200d\u200b 👩\u200d👧",
    "x" * 200,
)
LATER = 10
"""How many times farther a text may be from its vector that is padded at its left in a batch: it stands at later
positions there, whose angles the library rounds, and is this far from its own vector alone."""


@dataclass
class Peers:
    """The library's model of a folder, and a bundle that was built from it; ``asked`` are texts that both take."""

    name: str
    folder: Path
    library: Any
    built: Built

    @property
    def asked(self) -> Sequence[str]:
        return ASKED if self.name == "first" else (*ASKED, "")

    @property
    def prompts(self) -> Sequence[str | None]:
        embedding = self.built.manifest.embedding
        assert embedding is not None
        return (None, "", *embedding.prompts)

    def expected(self, texts: Sequence[str], prompt: str | None, batch: int = 4) -> NDArray[np.float32]:
        named = {} if prompt is None else {"prompt_name": prompt} if prompt else {"prompt": ""}
        found: NDArray[np.float32] = self.library.encode(list(texts), batch_size=batch, **named)
        return found

    def load(self, backend: str) -> edgepack.Model:
        return edgepack.load(self.built.path, backend, variant=f"{backend}-f32", kv_cache="f32")

    def limit(self, backend: str) -> float:
        return (WITH_GELU if self.name.startswith("gemma") else LIMITS)[backend]


def of_library(folder: Path) -> Any:
    """Return the library's model of a folder."""
    library = pytest.importorskip("sentence_transformers")
    options = {"dtype": "float32"}
    return library.SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)


def peers_of(name: str, folder: Path, out: Path, *targets: str) -> Peers:
    """Return both of a folder, the bundle in f32."""
    library = of_library(folder)
    return Peers(name, folder, library, build(str(folder), Recipe(targets or BACKENDS, ("f32",)), out))


@pytest.fixture(scope="module", params=VARIANTS)
def peers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Peers:
    place = tmp_path_factory.mktemp("peers")
    return peers_of(request.param, VARIANTS[request.param](place / "source"), place / "out.edgepack")


def hold(found: NDArray[np.float32], expected: NDArray[np.float32], limit: float, each: float) -> None:
    """Hold vectors to those that are expected: all of them, the direction of each, and the numbers in them."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    longest = float(np.linalg.norm(expected, axis=1).max())
    far = [1 - cosine(one, other) for one, other in zip(found, expected, strict=True)]
    largest = float(np.abs(found - expected).max()) / longest
    print(f"nmse {nmse(found, expected):.1e}, 1 - cosine {max(far):.1e}, largest difference {largest:.1e} of a length")
    assert nmse(found, expected) <= limit
    assert max(far) <= each
    assert largest <= np.sqrt(limit)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_vectors_are_those_of_the_library(backend: str, side: str, peers: Peers) -> None:
    """Of texts in batches of unequal lengths there, with each prompt and without, padded at either side."""
    peers.library.tokenizer.padding_side = side
    limit = peers.limit(backend)
    with peers.load(backend) as model:
        for prompt in peers.prompts:
            print(f"{peers.name}, {backend}, {side}, {prompt!r}: ", end="")
            found, expected = model.embed(peers.asked, prompt), peers.expected(peers.asked, prompt)
            hold(found, expected, limit, limit * (LATER if side == "left" else 1))


def test_prompts_and_texts_are_told_apart(peers: Peers) -> None:
    """What the comparison would hear: another text, and another prompt, are far beyond any limit."""
    plain = peers.expected(TEXTS, "")
    if peers.name != "first":  # whose first token sees none of the others
        assert all(1 - cosine(one, plain[0]) > 1e-3 for one in plain[1:])
    for prompt in peers.prompts:
        said = peers.library.prompts.get(prompt or peers.library.default_prompt_name)
        assert (nmse(peers.expected(TEXTS, prompt), plain) > 1e-3) == bool(said and prompt != ""), prompt


def test_queries_and_documents_are_those_of_the_library(peers: Peers) -> None:
    if not peers.prompts[2:]:
        pytest.skip("it has no prompts")
    with peers.load("mlx") as model:
        for name, encode in (("query", peers.library.encode_query), ("document", peers.library.encode_document)):
            hold(model.embed(TEXTS, name), encode(list(TEXTS)), 1e-10, 1e-10 * LATER)


def test_sizes_and_limits_are_those_of_the_library(peers: Peers) -> None:
    embedding = peers.built.manifest.embedding
    assert embedding is not None
    assert embedding.size == peers.library.encode("a").size
    assert embedding.similarity == peers.library.similarity_fn_name
    assert peers.built.manifest.context.profile == peers.library.max_seq_length == 512


@pytest.mark.parametrize("name", ["last", "gemma-tasks"])
def test_what_the_library_saves_embeds_the_same(name: str, tmp_path: Path) -> None:
    library = of_library(VARIANTS[name](tmp_path / "source"))
    library.save_pretrained(str(tmp_path / "saved"))
    saved = peers_of(name, tmp_path / "saved", tmp_path / "out.edgepack", "onnx")
    with saved.load("onnx") as model:
        for prompt in saved.prompts:
            hold(model.embed(saved.asked, prompt), saved.expected(saved.asked, prompt, batch=1), 1e-10, 1e-10)


@pytest.mark.parametrize(
    ("transformer", "tokenizer", "limit"),
    [
        ({"max_seq_length": 40, "do_lower_case": False}, {}, 40),
        ({}, {"model_max_length": 40}, 40),
        ({"max_seq_length": 40}, {"model_max_length": 24}, 40),
        ({"max_seq_length": 24}, {"model_max_length": 40}, 24),
        ({"max_seq_length": None}, {"model_max_length": 1000000000000000019884624838656}, 512),
    ],
)
def test_a_text_past_the_limit_is_cut_there_and_refused_here(
    transformer: Mapping[str, Any], tokenizer: Mapping[str, Any], limit: int, tmp_path: Path
) -> None:
    folder = make_embedding(tmp_path / "source")
    if transformer:
        write_json(folder / "sentence_bert_config.json", transformer)
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", {**named, **tokenizer})
    peers = peers_of("last", folder, tmp_path / "out.edgepack", "mlx")
    assert peers.built.manifest.context.profile == peers.library.max_seq_length == limit
    fits = " a" * (limit - 1)  # and the token that ends it
    with peers.load("mlx") as model:
        hold(model.embed(fits), peers.expected([fits], None), 1e-10, 1e-10)
        with pytest.raises(PromptTooLongError, match=f"has {limit + 1} tokens, the context {limit}"):
            model.embed(fits + " a")
        cut = peers.expected([fits + " box is what is cut off"], None)
        hold(model.embed(fits), cut, 1e-10, 1e-10)


def test_a_token_that_a_text_names_is_text_here(tmp_path: Path) -> None:
    """There it is the token, unless the tokenizer is told to split it: then it is the same text."""
    peers = peers_of("last", make_embedding(tmp_path / "source"), tmp_path / "out.edgepack", "mlx")
    texts = ["<|im_end|>", "a <|endoftext|> b"]
    with peers.load("mlx") as model:
        found = model.embed(texts)
        assert nmse(found, peers.expected(texts, None)) > 1e-3
        peers.library.tokenizer.split_special_tokens = True
        hold(found, peers.expected(texts, None, batch=1), 1e-10, 1e-10)


def test_a_norm_of_something_else_than_the_vector_is_refused(tmp_path: Path) -> None:
    """The library's Normalize can take the tokens' states, behind the Pooling too, where that changes no vector."""
    folder = make_embedding(tmp_path / "source")
    (folder / "2_Normalize").mkdir()
    said = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    write_json(folder / "2_Normalize" / "config.json", said)
    assert not np.allclose(np.linalg.norm(of_library(folder).encode(list(TEXTS)), axis=1), 1)
    with pytest.raises(UnsupportedModelError, match=r"2_Normalize/config\.json: module_input_name is"):
        build(str(folder), Recipe(("mlx",), ("f32",)), tmp_path / "out.edgepack")


def test_an_empty_text_without_marks_is_refused(tmp_path: Path) -> None:
    peers = peers_of("first", VARIANTS["first"](tmp_path / "source"), tmp_path / "out.edgepack", "mlx")
    with pytest.raises(RuntimeError):  # of torch, which has nothing to pool
        peers.expected([""], None)
    with peers.load("mlx") as model, pytest.raises(UsageError, match="is empty"):
        model.embed("")


@pytest.mark.shared
def test_a_published_tokenizer_reads_the_same(shared: Path, tmp_path: Path) -> None:
    """That of Qwen3 with the mark that Qwen3-Embedding's puts behind a text, by the class that its files name."""
    folder = make_embedding(tmp_path / "source", fields={**QWEN3, "vocab_size": 151936, "hidden_size": 32})
    marks = json.loads((folder / "tokenizer.json").read_text("utf-8"))["post_processor"]
    said = json.loads((shared / "tokenizers" / "qwen3" / "tokenizer.json").read_text("utf-8"))
    end = next(each["id"] for each in said["added_tokens"] if each["content"] == "<|endoftext|>")
    marks["processors"][1]["special_tokens"]["<|endoftext|>"]["ids"] = [end]
    write_json(folder / "tokenizer.json", {**said, "post_processor": marks})
    shutil.copy(shared / "tokenizers" / "qwen3" / "tokenizer_config.json", folder)
    peers = peers_of("last", folder, tmp_path / "out.edgepack", "mlx")
    assert type(peers.library.tokenizer).__name__ == "Qwen2Tokenizer"
    with peers.load("mlx") as model:
        for prompt in PROMPTS:
            hold(model.embed(peers.asked, prompt), peers.expected(peers.asked, prompt, batch=1), 1e-10, 1e-10)
