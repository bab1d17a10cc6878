"""How long an answer will take: a prediction from what an engine's products take here. Pure arithmetic.

It counts the products with weights, which are read from memory once for each step, the products of attention with the
KV cache, and what each layer takes beside them. Tokenising, sampling and the load are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.bundle.decoder import Decoder
    from edgepack.bundle.manifest import Manifest, Quantization
    from edgepack.device.engine import Options, Rate, Speed
    from edgepack.device.tuning import Tuning

PROMPT, ANSWER = 512, 128


@dataclass(frozen=True, slots=True)
class Turn:
    """The question that a plan is for: tokens of its prompt and of its answer."""

    prompt: int = PROMPT
    answer: int = ANSWER


@dataclass(frozen=True, slots=True)
class Seconds:
    """What a turn takes: the prompt until its first token is there, and then the rest of the answer.

    ``certain`` says that no other program disturbed the measurement behind it.
    """

    prefill: float
    decode: float
    certain: bool = True

    @property
    def total(self) -> float:
        """Seconds to the whole answer."""
        return self.prefill + self.decode


def predict(speed: Speed, decoder: Decoder, scheme: str, others: Mapping[str, str], turn: Turn) -> Seconds | None:
    """Return what a turn will take, None where the engine's speed with one of the types is not known, or the matrices.

    ``others`` maps the canonical names of tensors that do not have the scheme to the type that they have. Products of
    attention are those of a query with the keys before it and of their weights with the values: 2 q values a position.
    """
    rates = speed.rates
    head = {"head", "embedding"} if decoder.tied else {"head"}
    prefill = decode = last = 0.0
    for name, shape in decoder.tensors():
        if len(shape) < 2 or name in decoder.looked_up:
            continue
        of_scheme = rates.get(f"{scheme}.head") or rates.get(scheme) if name in head else rates.get(scheme)
        rate = rates.get(others[name]) if name in others else of_scheme
        if rate is None:
            return None
        weights = math.prod(shape)
        decode += weights * rate.decode
        if name in head:  # of a prompt, only the last token's logits are computed
            last += weights * rate.decode
        else:
            prefill += weights * rate.prefill
    attention = rates.get("attention")
    if attention is None or decoder.exported:
        return None
    layers, prompt, answer = decoder.n_layers, turn.prompt, turn.answer
    products = 2 * sum(each.q_size for each in decoder.attentions)
    step = decode + layers * speed.layer.decode + products * attention.decode * (prompt + answer / 2)
    return Seconds(
        prefill=prompt * (prefill + layers * speed.layer.prefill + products * attention.prefill * prompt / 2) + last,
        decode=(answer - 1) * step,
        certain=speed.settled,
    )


def schemes(manifest: Manifest) -> dict[str, frozenset[str]]:
    """Return what has to be known of each runtime's speed to predict a bundle: schemes, and types of fallbacks."""
    found: dict[str, frozenset[str]] = {}
    for each in manifest.variants:
        names = {each.quantization.scheme, *(fallback.scheme for fallback in each.quantization.fallbacks)}
        found[each.runtime] = found.get(each.runtime, frozenset()) | names
    return found


def by_type(rates: Mapping[str, Rate]) -> dict[str, float]:
    """Return what a weight of each type costs an answer, in times of the fastest, fastest first.

    ``rates`` are as in ``Speed``; what is no type of weights is left out, and a scheme of one type is named once.
    """
    turn = Turn()
    cost = {
        name.lower(): turn.prompt * rate.prefill + (turn.answer - 1) * rate.decode
        for name, rate in rates.items()
        if name != "attention" and not name.endswith(".head")
    }
    least = min(cost.values(), default=1.0)
    return {name: cost[name] / least for name in sorted(cost, key=lambda name: (cost[name], name))}


def at_rates(prefill_tps: float, decode_tps: float, turn: Turn) -> Seconds:
    """Return what a turn takes at rates in tokens per second."""
    return Seconds(turn.prompt / prefill_tps, (turn.answer - 1) / decode_tps)


def expected(
    decoder: Decoder, stored: Quantization, speed: Speed | None, options: Options, turn: Turn, tuning: Tuning | None
) -> Seconds | None:
    """Return what a turn takes: by what was measured of the variant, else by the engine's speed on the CPU, else None.

    A speed holds for what an engine does by itself: with other threads, or weights as it is told, it is another.
    """
    if tuning is not None:
        return at_rates(tuning.prefill_tps, tuning.decode_tps, turn)
    if speed is None or speed.threads != options.threads or options.repack is not None:
        return None
    others = {each.tensor: each.scheme for each in stored.fallbacks}
    return predict(speed, decoder, stored.scheme, others, turn)
