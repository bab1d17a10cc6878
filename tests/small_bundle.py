"""Small bundles written by hand, for the tests of what reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.bundle.manifest import Manifest, decode, encode
from edgepack.bundle.receipt import source_digest
from edgepack.text import tables as tokenizer_tables
from edgepack.text.compiling import compile_tokenizer

WORDS = ("<s>", "</s>", "<|user|>", "<|assistant|>", "hello", "world", "one", "two", "three", "!")
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


def tokenizer_json() -> bytes:
    """A byte-level BPE tokenizer without merges: 256 bytes and the first four ``WORDS`` as special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:4]])
    text: str = tokenizer.to_str()
    return text.encode()


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file's entry in the manifest."""
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def variant(id: str, data: bytes = b"weights", **changes: Any) -> dict[str, Any]:
    """A variant of one file, ``model.bin``; its target and runtime are the part of the id before the dash."""
    target, _, scheme = id.partition("-")
    plain = {
        "id": id,
        "target": target,
        "runtime": target,
        "floor": "1.0",
        "quantization": {"asked": scheme, "scheme": scheme, "bits": 4.5, "fallbacks": []},
        "weights_bytes": 1_000_000,
        "files": [entry("model.bin", data)],
        "proof": {
            "engine": f"{target} 1.2",
            "tokens": 256,
            "gates": [{"name": "kl", "value": 0.01, "limit": 0.05, "holds": "<="}],
        },
        "self_test": None,
    }
    return plain | changes


def manifest(variants: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A manifest over the shared files of ``write``."""
    plain: dict[str, Any] = {
        "schema": {"version": 2, "features": []},
        "name": "small",
        "version": "0.1.0",
        "producer": {"edgepack": "0.1.0", "packages": {"numpy": "2.0"}, "recipe": {"targets": ["fake"]}},
        "source": {"name": "small", "repository": None, "revision": None, "files": []},
        "license": {"id": "MIT", "files": ["LICENSE"]},
        "decoder": {
            "family": "llama",
            "architecture": "LlamaForCausalLM",
            "n_layers": 2,
            "hidden_size": 64,
            "n_vocab": 260,
            "context": 8192,
            "norm_eps": 1e-5,
            "trained_context": 8192,
            "kinds": [
                {
                    "mixer": {
                        "type": "attention",
                        "n_heads": 4,
                        "n_kv_heads": 2,
                        "head_dim": 16,
                        "rope": {"theta": 10000.0, "dim": 16},
                    },
                    "mlp": {"size": 128},
                }
            ],
            "tied": True,
        },
        "tokenizer": {"rows": 260, "bos": 256, "add_bos": False, "probes": []},
        "stops": [{"id": 257, "text": "</s>", "sources": ["generation_config.json"]}],
        "chat": {"roles": ["user", "assistant"], "date": None, "goldens": []},
        "generation": {"max_tokens": 8},
        "context": {"trained": 8192, "profile": 8192, "verified": 8192, "kv_values_per_token": 128},
        "files": [],
        "variants": variants,
    }
    return plain | changes


def read(plain: Mapping[str, Any]) -> Manifest:
    """The same as the SDK's own type, through its own reader."""
    return decode(json.dumps(plain).encode())


def write(
    folder: Path,
    variants: list[dict[str, Any]] | None = None,
    payloads: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Path:
    """Write a whole bundle into ``folder`` and return it. ``payloads`` maps a variant's id to its ``model.bin``."""
    shared = {
        "LICENSE": b"MIT\n",
        "tokenizer.json": tokenizer_json(),
        "tokenizer.bin": tokenizer_tables.encode(compile_tokenizer(tokenizer_json())),
        "tokenizer_config.json": b'{"bos_token": "<s>", "eos_token": {"content": "</s>"}}',
    }
    if changes.get("chat", True) is not None:
        shared["chat_template.jinja"] = TEMPLATE.encode()
    variants = [variant("fake-q4")] if variants is None else variants
    plain = manifest(variants, **({"files": [entry(name, data) for name, data in shared.items()]} | changes))
    for each in variants:
        place = folder / "variants" / each["id"]
        place.mkdir(parents=True)
        (place / "model.bin").write_bytes((payloads or {}).get(each["id"], b"weights"))
    for name, data in shared.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(encode(read(plain)))
    return folder


def add(folder: Path, name: str, data: bytes) -> Path:
    """Add a shared file to a bundle, and to its manifest; return the bundle."""
    (folder / name).write_bytes(data)
    place = folder / "manifest.json"
    plain = json.loads(place.read_bytes())
    plain["files"].append(entry(name, data))
    place.write_bytes(encode(read(plain)))
    return folder


def figures(kl: float) -> dict[str, float]:
    """What a payload lost, in a receipt."""
    rest = {"kl_error": kl / 20, "kl_p99": 4 * kl, "top1": 0.9, "top1_error": 0.004}
    return {"kl": kl, **rest, "perplexity": 17.0, "ratio": 1.06, "ratio_error": 0.01}


def receipt(lost: Mapping[str, float], plain: Mapping[str, float] | None = None, /, **changes: Any) -> bytes:
    """A receipt over the source of ``manifest``: the KL of each variant, and of the plain scheme beside some."""
    measured = [
        {"variant": name, "by": "fake 1.2", "lost": figures(kl)}
        | ({"plain": figures(plain[name])} if plain and name in plain else {})
        for name, kl in lost.items()
    ]
    whole = {
        "version": 1,
        "text": {"name": "held.txt", "sha256": "ab" * 32, "tokens": 8192, "window": 512},
        "source": source_digest([]),
        "perplexity": 16.04,
        "perplexity_error": 0.31,
        "variants": measured,
    }
    return json.dumps(whole | changes).encode()


def write_with_draft(folder: Path, outer: Mapping[str, Any] | None = None) -> Path:
    """Write a bundle that holds a draft model of one layer; ``outer`` changes the bundle's own manifest."""
    folder.mkdir()
    small = manifest([])["decoder"] | {"n_layers": 1}
    write(folder / "draft", name="smaller", decoder=small)
    id = hashlib.sha256((folder / "draft" / "manifest.json").read_bytes()).hexdigest()
    return write(folder, draft=id, schema={"version": 2, "features": ["draft"]}, **(outer or {}))
