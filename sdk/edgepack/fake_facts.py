"""What the fake model is made of: a vocabulary of the 256 bytes and two special tokens, and a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import accumulate

import msgspec
import numpy as np

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack.bundle.embedding import Embedding
from edgepack.bundle.manifest import (
    VERSION,
    Chat,
    Context,
    Generation,
    License,
    Manifest,
    Producer,
    Quantization,
    Schema,
    Source,
    Stop,
    Variant,
)
from edgepack.bundle.manifest import Tokenizer as TokenizerFacts
from edgepack.bundle.rope import Rope
from edgepack.bundle.thinking import Thinking
from edgepack.text.added import Added
from edgepack.text.letters import CHARACTER_OF
from edgepack.text.splitting import symbol
from edgepack.text.tables import Tables
from edgepack.text.words import Front

END, START = 256, 257
NAME = "fake"
"""Of the runtime."""


def tables() -> Tables:
    """Return the vocabulary: ids 0 to 255 are the bytes of UTF-8, 256 is ``<|end|>``, 257 ``<|start|>``."""
    names = {"<|end|>": END, "<|start|>": START}
    texts = [*(CHARACTER_OF[byte].encode() for byte in range(256)), *(name.encode() for name in names)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    added = [{"id": id, "content": name, "special": True} for name, id in names.items()]
    vocab = {CHARACTER_OF[byte]: byte for byte in range(256)}
    none = memoryview(b"").cast("I")
    return Tables(
        n_tokens=len(texts),
        rest=json.dumps({"added_tokens": added, "decoder": byte_level, "model": {"vocab": vocab}}),
        ids=_words(range(len(texts))),
        texts=memoryview(b"".join(texts)),
        ends=_words(accumulate(map(len, texts))),
        pairs=memoryview(b"").cast("Q"),
        ranks=none,
        joined=none,
        sorted=none,
        splits=False,
        front=Front(
            added=[Added(name, id, special=True) for name, id in names.items()],
            normalized=[],
            changes=[],
            before=[],
            steps=[],
            starts=_words([0]),
            symbols=symbol(0),
            letters={},
            bytes=[*range(256)],
        ),
    )


def _words(values: Iterable[int]) -> memoryview:
    return memoryview(np.array([*values], "<u4").tobytes()).cast("I")


def manifest(thinking: Thinking | None = None) -> Manifest:
    """Return the manifest of a bundle with one variant, for the fake runtime."""
    decoder = Decoder(
        family="fake",
        architecture="FakeForCausalLM",
        n_layers=1,
        hidden_size=8,
        n_vocab=258,
        context=131072,
        trained_context=131072,
        norm_eps=1e-5,
        kinds=(
            Layer(
                mixer=Attention(n_heads=1, n_kv_heads=1, head_dim=8, rope=Rope(theta=10000.0, dim=8)), mlp=Mlp(size=8)
            ),
        ),
        tied=True,
    )
    return Manifest(
        schema=Schema(version=VERSION),
        name="fake",
        version="1",
        producer=Producer(edgepack="fake", packages={}, recipe={}),
        source=Source(name="fake", repository=None, revision=None, files=[]),
        license=License(id="MIT", files=[]),
        decoder=decoder,
        tokenizer=TokenizerFacts(rows=258, bos=None, add_bos=False, probes=[]),
        stops=[Stop(id=END, text="<|end|>", sources=[])],
        chat=Chat(roles=["system", "user", "assistant", "tool"], date=None, goldens=[], thinking=thinking),
        generation=Generation(),
        context=Context(trained=131072, profile=131072, verified=0, kv_values_per_token=decoder.kv_values_per_token),
        files=[],
        variants=[
            Variant(
                id="fake-f32",
                target="fake",
                runtime=NAME,
                floor="0",
                quantization=Quantization(asked="f32", scheme="f32", bits=32.0, fallbacks=[]),
                weights_bytes=0,
                files=[],
                proof=None,
                self_test=None,
            )
        ],
    )


def embedding_manifest(size: int, prompts: Mapping[str, str]) -> Manifest:
    """Return the same of a model that embeds: its vectors have ``size`` elements."""
    found = manifest()
    decoder = msgspec.structs.replace(found.decoder, hidden_size=size, headless=True)
    embedding = Embedding(
        pooling="last",
        size=size,
        normalized=True,
        ends=[END],
        prompts=dict(prompts),
        default_prompt=None,
        similarity="cosine",
    )
    return msgspec.structs.replace(found, decoder=decoder, embedding=embedding, chat=None)
