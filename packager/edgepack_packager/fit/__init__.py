"""Whether a model fits a device: sizes and memory of every variant, from the model's config.json alone.

Pure arithmetic: a config and a device go in, rows come out. It reads no weights and asks no engine. The sizes are
those of the writers' own layouts (``Target.measure``), the memory is that of the plan (``edgepack.device.memory``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from edgepack.bundle.decoder import Decoder
from edgepack.device.limits import default_kv_cache
from edgepack.device.memory import Memory, Payload, kv_bytes, largest_context, needed
from edgepack.device.planning import DEFAULT_CONTEXT
from edgepack.device.seconds import Turn
from edgepack.errors import EngineMissingError, UnsupportedModelError
from edgepack.runtime import KvCache, Options
from edgepack_packager import families, targets
from edgepack_packager.coarse import is_coarse
from edgepack_packager.fit.devices import Device
from edgepack_packager.targets import Model, Target, Written

_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class Row:
    """A variant that could be built. Sizes are bytes.

    ``file_bytes`` is ``Written.data_bytes``: the weight files, without the header of a GGUF file, which holds the
    tokenizer: of that a config says nothing. ``fits_context`` is the largest context that fits, 0 where not one token
    does; ``served`` says whether the device has the engine, ``default`` whether this is what ``--quant q4`` means.
    ``decode_at_best_s`` are seconds that the answer after a prompt cannot go below (``at_best``), None where the
    device's bandwidth is not known.
    """

    target: str
    runtime: str
    scheme: str
    bits: float
    file_bytes: int
    kv_cache: KvCache
    memory: Memory
    fits_context: int
    served: bool
    default: bool
    decode_at_best_s: float | None = None

    @property
    def id(self) -> str:
        """The variant's name in a bundle."""
        return f"{self.target}-{self.scheme}"

    @property
    def fits(self) -> bool:
        """Whether it runs on the device at the asked context."""
        return self.served and self.memory.fits


@dataclass(frozen=True, slots=True)
class Refusal:
    """A variant that cannot be built for the asked context, and why."""

    target: str
    scheme: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer: the decoder for the asked context, and every variant, those that cannot be built too."""

    decoder: Decoder
    device: Device
    rows: tuple[Row, ...]
    refusals: tuple[Refusal, ...]

    @property
    def fits(self) -> bool:
        """Whether any variant fits at the asked context."""
        return any(row.fits for row in self.rows)

    @property
    def choice(self) -> Row | None:
        """What to take: of those that fit, what q4 means, on the device's best engine; else what has the most bits.

        Where none fits, the one that fits with the largest context, of equals what q4 means; None where not one token
        fits anywhere.
        """
        engines = list(self.device.engines)
        if self.fits:
            fitting = (row for row in self.rows if row.fits)
            return min(fitting, key=lambda row: (not row.default, engines.index(row.runtime), -row.bits))
        shorter = (row for row in self.rows if row.served and row.fits_context)
        return max(shorter, key=lambda row: (row.fits_context, row.default), default=None)


def fit(config: Mapping[str, Any], device: Device, context: int | None = None, turn: Turn | None = None) -> Fit:
    """Measure every variant that needs no calibration, packed and run for ``context`` tokens, and what an answer takes
    at best.

    Without a context it is 4096, or less where the model's own is: what the SDK loads by default. Raises as
    ``families.describe``.
    """
    decoder = families.describe(config, context or min(DEFAULT_CONTEXT, families.describe(config).context))
    rows: list[Row] = []
    refusals: list[Refusal] = []
    for target in map(targets.find, targets.names()):
        default = _scheme(target, "q4", config, decoder)
        for scheme in (each for each in target.schemes if not is_coarse(target, each)):
            if reason := _refusal(target, scheme, config, decoder):
                refusals.append(Refusal(target.name, scheme, reason))
            elif _scheme(target, scheme, config, decoder) in (scheme, None):  # a wide model gets bf16 for f16
                rows.append(_row(target, scheme, config, decoder, device, scheme == default, turn or Turn()))
    return Fit(decoder, device, tuple(rows), tuple(refusals))


def at_best(decoder: Decoder, bits: float, cache: int, bandwidth: float, turn: Turn) -> float:
    """Return seconds that no engine stays below when it answers, once the prompt's first token is there.

    Each step reads all weights, ``bits`` each on average, but of matrices that are looked up in one row, and ``cache``
    bytes of the KV cache. What is computed on the way, and the prompt, take more than that.
    """
    rows = sum(math.prod(shape) for name, shape in decoder.tensors() if name in decoder.looked_up)
    return (turn.answer - 1) * ((decoder.n_parameters - rows) * bits / 8 + cache) / bandwidth


def element_type(config: Mapping[str, Any]) -> str:
    """Return the type that a config says its weights are stored in; bf16, as most are, where it says none."""
    text = config.get("text_config")
    for fields in (config, text if isinstance(text, dict) else {}):
        # transformers 5 says dtype where older versions said torch_dtype.
        for name in ("dtype", "torch_dtype"):
            if isinstance(said := fields.get(name), str) and said in _DTYPES:
                return _DTYPES[said]
    return "bf16"


def _model(config: Mapping[str, Any], decoder: Decoder) -> Model:
    return Model("model", decoder, element_type(config), config)


def _scheme(target: Target, quant: str, config: Mapping[str, Any], decoder: Decoder) -> str | None:
    """Return the scheme that a target would take here; None where it cannot build the model so."""
    try:
        return target.scheme(quant, _model(config, decoder))
    except (UnsupportedModelError, EngineMissingError):
        return None


def _refusal(target: Target, scheme: str, config: Mapping[str, Any], decoder: Decoder) -> str | None:
    """Return why a target cannot express the model. A library that is missing on this host is no such reason."""
    try:
        target.scheme(scheme, _model(config, decoder))
    except UnsupportedModelError as error:
        return str(error)
    except EngineMissingError:
        pass
    return None


def _row(
    target: Target,
    scheme: str,
    config: Mapping[str, Any],
    decoder: Decoder,
    device: Device,
    default: bool,
    turn: Turn,
) -> Row:
    kv_cache = default_kv_cache(scheme, device.engines.get(target.runtime, ()))
    written = target.measure(decoder, element_type(config), scheme)

    bandwidth = None if decoder.at_once else device.bandwidth  # which says something of an answer alone
    bits = written.bits(decoder)
    cache = kv_bytes(decoder, target.runtime, kv_cache, turn.prompt + turn.answer // 2)

    def total(context: int) -> float:
        packed = families.describe(config, context)
        if _refusal(target, scheme, config, packed):
            return math.inf
        # What an engine keeps of weights follows from what the layers are, which a context seldom changes.
        alike = replace(packed, context=decoder.context) == decoder
        found = written if alike else target.measure(packed, element_type(config), scheme)
        return memory(target, scheme, packed, found, kv_cache, device).total

    return Row(
        target=target.name,
        runtime=target.runtime,
        scheme=scheme,
        bits=bits,
        file_bytes=written.data_bytes,
        kv_cache=kv_cache,
        memory=memory(target, scheme, decoder, written, kv_cache, device),
        # Where an engine refuses some contexts, it is the longer ones.
        fits_context=largest_context(total, decoder.trained_context, device.memory),
        served=target.runtime in device.engines,
        default=default,
        decode_at_best_s=at_best(decoder, bits, cache, bandwidth, turn) if bandwidth else None,
    )


def memory(
    target: Target, scheme: str, decoder: Decoder, written: Written, kv_cache: KvCache, device: Device
) -> Memory:
    """Return what a variant of these sizes needs on a device, at the decoder's context."""
    # A tokenizer has as many entries as the embedding has rows, or a few less.
    computes = "metal" if "mlx" in device.engines else "cpu"
    sizes = written.weights_bytes, written.loading_bytes
    payload = Payload(decoder, target.runtime, scheme, sizes[0], decoder.n_vocab, computes, loading=sizes[1])
    found = needed(payload, Options(decoder.context, 1, kv_cache), device.memory)
    # As a plan does: without the copy that llama.cpp rearranges where only that is too much.
    return found if found.fits else needed(payload, Options(decoder.context, 1, kv_cache, repack=False), device.memory)
