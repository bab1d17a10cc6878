"""Build every alias of the catalogue, from a hub on localhost: real configs, random weights.

    python benchmarks/catalogue.py SHARED --scratch /tmp/catalogue [--only phi-3.5-mini ...]

SHARED holds published configs and tokenizers (configs/NAME.json, tokenizers/NAME/). A model whose config is not there
gets a sibling's with the published sizes, or what the catalogue carries; one whose tokenizer is not there a small
byte-level one. Layers are cut to one whole attention pattern, at least two. Each build is the command line as a user
types it; a line of JSON for each goes to SCRATCH/builds.jsonl, and a build that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from make_model import cut, make

from edgepack_packager import families
from edgepack_packager.source import catalog

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from embedding_models import make_embedding
from hub import TOKEN, Hub
from text_side import write_json


@dataclass(frozen=True, slots=True)
class Facts:
    """The config and the tokenizer in SHARED that a model gets, and what differs from that config.

    ``tokens`` are special tokens, with their published ids, that the small tokenizer gets where none is in SHARED.
    """

    config: str
    tokenizer: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)


def _sizes(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
    }


_SMOLLM3 = {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    **_sizes(2048, 36, 16, 4, 11008),
    "vocab_size": 128256,
    "max_position_embeddings": 65536,
    "rope_theta": 5000000.0,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 128000,
    "eos_token_id": 128012,
}
_PHI4 = {"<|endofprompt|>": 199999, "<|end|>": 200020}
_TINYLLAMA = {**_sizes(2048, 22, 32, 4, 5632), "vocab_size": 32000, "max_position_embeddings": 2048}

MODELS: Mapping[str, Facts] = {
    "llama-3.2-1b": Facts("Llama-3.2-1B-Instruct", "llama-3.2"),
    "llama-3.2-3b": Facts("Llama-3.2-3B-Instruct", "llama-3.2"),
    "phi-3.5-mini": Facts("Phi-3.5-mini-instruct", "phi-3.5-mini"),
    "phi-4-mini": Facts("Phi-4-mini-reasoning", tokens=_PHI4),
    "phi-4-mini-reasoning": Facts("Phi-4-mini-reasoning", tokens=_PHI4),
    "gemma-2-2b": Facts("gemma-2-2b-it"),
    "gemma-3-270m": Facts("gemma-3-270m-it"),
    "gemma-3-1b": Facts("gemma-3-1b-it"),
    "gemma-3-1b-qat": Facts("gemma-3-1b-it"),
    "gemma-3-4b": Facts("gemma-3-4b-it"),
    "gemma-3-4b-qat": Facts("gemma-3-4b-it"),
    "functiongemma-270m": Facts("gemma-3-270m-it"),
    "qwen2.5-0.5b": Facts("Qwen2.5-0.5B-Instruct", "qwen3"),
    "qwen2.5-1.5b": Facts("Qwen2.5-0.5B-Instruct", "qwen3", _sizes(1536, 28, 12, 2, 8960)),
    "qwen3-0.6b": Facts("Qwen3-0.6B", "qwen3"),
    "qwen3-1.7b": Facts("Qwen3-1.7B", "qwen3"),
    "qwen3-4b": Facts("Qwen3-1.7B", "qwen3", _sizes(2560, 36, 32, 8, 9728)),
    "smollm2-135m": Facts("SmolLM2-135M", "smollm2"),
    "smollm2-360m": Facts("SmolLM2-135M", "smollm2", _sizes(960, 32, 15, 5, 2560)),
    "smollm2-1.7b": Facts("SmolLM2-135M", "smollm2", _sizes(2048, 24, 32, 32, 8192) | {"rope_theta": 130000}),
    "smollm3-3b": Facts("SmolLM2-135M", "llama-3.2", _SMOLLM3),
    "tinyllama": Facts("SmolLM2-135M", None, _TINYLLAMA | {"rope_theta": 10000.0, "tie_word_embeddings": False}),
}


def main() -> None:
    """Serve one model after the other and build it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--targets", nargs="*", default=["all"])
    parser.add_argument("--quant", default="q8", help="random weights lose more at 4 bits than the proof lets pass")
    asked = parser.parse_args()
    asked.scratch.mkdir(parents=True, exist_ok=True)
    log = asked.scratch / "builds.jsonl"
    done = {json.loads(line)["alias"] for line in log.read_text().splitlines()} if log.exists() else set()
    for entry in sorted(catalog.entries(), key=lambda entry: (entry.parameters, entry.alias)):
        if entry.alias in done or (asked.only and entry.alias not in asked.only):
            continue
        folder = _model(entry, asked.shared, asked.scratch)
        row = _build(
            entry, folder, asked.scratch, [*(f"--target={name}" for name in asked.targets), "--quant", asked.quant]
        )
        print(json.dumps(row), flush=True)
        with open(log, "a") as file:
            file.write(json.dumps(row) + "\n")


def config_of(facts: Facts, shared: Path) -> dict[str, Any]:
    """Return a model's config.json: that of SHARED, with what differs."""
    config: dict[str, Any] = json.loads((shared / "configs" / f"{facts.config}.json").read_text()) | facts.changes
    if "hidden_size" in facts.changes and "Qwen3" not in facts.config:
        config.pop("head_dim", None)
    return config


def carried_config(name: str) -> dict[str, Any]:
    """Return what the catalogue carries of a model's config.json, as that of a text model which states its sizes."""
    carried = catalog.configs()[name].config
    decoder = families.describe(carried)
    attention, bidirectional = decoder.attentions[0], any(each.bidirectional for each in decoder.attentions)
    stated = {
        "num_hidden_layers": decoder.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        **({} if "block_ff_dim" in carried else {"intermediate_size": decoder.layer(0).mlp.size}),
        "vocab_size": decoder.n_vocab,
        "tie_word_embeddings": decoder.tied,
    }
    own = {key: value for key, value in carried.items() if key not in ("architectures", "text_config")}
    architecture = "Gemma3TextModel" if bidirectional else decoder.architecture
    return {"architectures": [architecture], **stated, **own, **carried.get("text_config", {})}


def _model(entry: catalog.Entry, shared: Path, scratch: Path) -> Path:
    """Return the checkpoint of a model, making it and dropping the one before."""
    folder = scratch / "models" / entry.alias.removesuffix("-base")
    if folder.exists():
        return folder
    shutil.rmtree(folder.parent, ignore_errors=True)
    facts = MODELS.get(entry.alias.removesuffix("-base"))
    config = config_of(facts, shared) if facts else carried_config(entry.alias)
    layers = max(2, len(families.describe(config).pattern))
    if entry.embeds:
        pooling = "mean_tokens" if config["architectures"] == ["Gemma3TextModel"] else "lasttoken"
        return make_embedding(folder, pooling=pooling, fields=cut(config, layers))
    text = shared / "tokenizers" / facts.tokenizer if facts and facts.tokenizer else None
    make(config, folder, layers=layers, text=text)
    if facts and facts.tokens:
        _add_tokens(folder, facts.tokens)
    return folder


def _add_tokens(folder: Path, tokens: Mapping[str, int]) -> None:
    """Give the small tokenizer special tokens at their published ids, with the gap that this leaves before them."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    like = tokenizer["added_tokens"][0]
    tokenizer["model"]["vocab"] |= tokens
    tokenizer["added_tokens"] += [like | {"id": id, "content": content} for content, id in tokens.items()]
    write_json(path, tokenizer)


def _build(entry: catalog.Entry, folder: Path, scratch: Path, recipe: list[str]) -> dict[str, Any]:
    out = scratch / "bundle"
    shutil.rmtree(out, ignore_errors=True)
    options = [*recipe, "--out", str(out), "--accept-licence", "--json"]
    start = time.perf_counter()
    with Hub({entry.repository: folder}, gated={entry.repository} if entry.gated else ()) as hub:
        home = scratch / "home"
        environment = hub.env(home, HF_TOKEN=TOKEN)
        command = [sys.executable, "-m", "edgepack", "build", entry.alias, *options]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    shutil.rmtree(home, ignore_errors=True)
    row: dict[str, Any] = {
        "alias": entry.alias,
        "exit": child.returncode,
        "seconds": round(time.perf_counter() - start),
    }
    if child.returncode:
        return row | {"error": child.stderr.strip()[-600:]}
    manifest = json.loads(child.stdout)
    row |= {"layers": manifest["decoder"]["n_layers"], "context": manifest["context"]["profile"]}
    for variant in manifest["variants"]:
        gates = {gate["name"]: gate["value"] for gate in variant["proof"]["gates"]}
        lost = variant["proof"]["loss"].get("text", {})  # a model that embeds writes none
        row[variant["id"]] = {name: gates[name] for name in ("structure.nmse", "engine.nmse")}
        row[variant["id"]] |= {name: lost[name] for name in ("kl", "top1") if name in lost}
    return row


if __name__ == "__main__":
    main()
