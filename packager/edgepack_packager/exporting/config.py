"""What a config.json says of a model's sizes, whatever the architecture, under the names that transformers has.

That the sizes are the model's shows in the graph, whose inputs and outputs are held to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from edgepack.bundle.bounds import MAX_LAYERS
from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack.bundle.exported import Cell, Exported, Graph
from edgepack.errors import SourceError, UnsupportedModelError, UsageError
from edgepack_packager.families import bounded, fields, quantised, unbuilt

DEFAULT_CONTEXT: Final = 2048
"""What is packed and proven where nobody says: the proof runs every position of the context."""

_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "context": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
}
_INNER: Final = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")


def describe(config: Mapping[str, Any], reads: int, context: int | None = None) -> Decoder:
    """Return the sizes of a decoder-only model of text, for sequences of up to ``context`` tokens.

    ``reads`` is the newest major version of transformers whose config.json the exporter understands. ``exported`` has
    no exporter's name, an estimate of the parameters, and the names that optimum gives to the inputs
    and outputs of a graph, until there is a graph. Raises ``UnsupportedModelError`` for another kind of model,
    ``SourceError`` for a field that is missing or wrong, ``UsageError`` for a context that the model does not have.
    """
    _refuse(config, reads)
    layers, hidden, heads = (_count(config, what) for what in ("layers", "hidden", "heads"))
    if layers > MAX_LAYERS:
        raise SourceError(f"config.json: {layers} layers are more than {MAX_LAYERS}.", hint="Fetch the file again.")
    trained = _count(config, "context")
    if context is not None and not 2 <= context <= trained:
        raise UsageError(
            f"A context of {context} tokens: the model has {trained} positions.", hint="Choose 2 to that many."
        )
    inner = next((config[name] for name in _INNER if config.get(name)), 4 * hidden)
    vocabulary = fields.count(config, "vocab_size")
    attention = Attention(
        n_heads=heads,
        n_kv_heads=fields.count(config, "num_key_value_heads", default=heads),
        head_dim=fields.count(config, "head_dim", default=max(1, hidden // heads)),
        rope=None,
    )
    decoder = Decoder(
        family=str(config.get("model_type", "")),
        architecture=_architecture(config),
        n_layers=layers,
        hidden_size=hidden,
        n_vocab=vocabulary,
        context=context or min(trained, DEFAULT_CONTEXT),
        trained_context=trained,
        norm_eps=1.0,
        kinds=(Layer(mixer=attention, mlp=Mlp(size=fields.count({"inner": inner}, "inner"))),),
        tied=bool(config.get("tie_word_embeddings", True)),
        exported=Exported(
            exporter="",
            n_parameters=layers * (4 * hidden + 2 * inner) * hidden + 2 * vocabulary * hidden,
            graph=names(layers),
        ),
    )
    return bounded(decoder)


def names(layers: int, positions: bool = True) -> Graph:
    """Return the names that optimum gives to the inputs and outputs of a decoder with a KV cache."""
    return Graph(
        ids="input_ids",
        mask="attention_mask",
        positions="position_ids" if positions else None,
        logits="logits",
        cells=tuple(
            Cell(f"past_key_values.{layer}.{part}", f"present.{layer}.{part}")
            for layer in range(layers)
            for part in ("key", "value")
        ),
    )


def _refuse(config: Mapping[str, Any], reads: int) -> None:
    major = re.match(r"\d+", str(config.get("transformers_version", "")))
    if "rope_parameters" in config or (major and int(major[0]) > reads):
        raise UnsupportedModelError(
            f"config.json was written by a newer transformers than {reads}.x, which the exporter reads it with: "
            "fields that are spelled otherwise would be passed over without a word.",
            hint="Take a revision of the checkpoint that an older one wrote.",
        )
    if config.get("is_encoder_decoder") or not _architecture(config).endswith(("ForCausalLM", "LMHeadModel")):
        raise UnsupportedModelError(
            f"config.json: architectures names {_architecture(config)}, which is no decoder of text alone.",
            hint="An exporter takes models of the classes ...ForCausalLM and ...LMHeadModel.",
        )
    if config.get("auto_map"):
        raise UnsupportedModelError(
            "config.json: auto_map names code of the repository's own, which is never run.",
            hint="Take a checkpoint whose class transformers itself has, or remove the field where that has it by now.",
        )
    if found := quantised.declared(config):
        raise UnsupportedModelError(
            f"config.json: the weights are quantised by {found[0]}.", hint="Take the checkpoint in f32, f16 or bf16."
        )
    if kind := unbuilt.deciding_field(config):
        raise UnsupportedModelError(f"config.json has {kind}, which no exporter here takes.")


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise SourceError(
            "config.json: architectures must name one class.", hint='As "architectures": ["GPT2LMHeadModel"].'
        )
    return names[0]


def _count(config: Mapping[str, Any], what: str) -> int:
    name = next((name for name in _NAMES[what] if name in config), _NAMES[what][0])
    return fields.count(config, name)
