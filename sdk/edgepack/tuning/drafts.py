"""Whether a bundle's draft model pays on this device: the same answers with it and without, in turns, in a process of
its own, whose crash or hang is only a reason.

What a draft brings depends on how often it guesses right, so that it is measured on texts: the bundle's own prompts.
Run as ``python -m edgepack.tuning.drafts``: a job comes in on standard input, the gain goes out on standard output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import msgspec

from edgepack.bundle.files import Bundle, open_bundle
from edgepack.bundle.manifest import Manifest
from edgepack.device.hardware import Hardware
from edgepack.device.planning import Candidate, make_plan
from edgepack.device.tuning import Tuning
from edgepack.engines import Runtimes
from edgepack.errors import EdgepackError, EngineError
from edgepack.loading import open_candidate
from edgepack.model import Model
from edgepack.runtime import Support
from edgepack.tuning import apart

_PROMPTS = 3
_FEWEST = 8
"""Tokens of an answer from which its speed says something."""


class Job(msgspec.Struct, frozen=True):
    """What to measure: a candidate with a draft, answers of at most so many tokens, and how many pairs to give
    with either of the two first."""

    bundle: str
    candidate: Candidate
    tokens: int
    repeats: int


Gain = Callable[[Job, float], float]


def judge(
    bundle: Bundle,
    hardware: Hardware,
    supports: Mapping[str, Support],
    tunings: Mapping[str, Tuning],
    *,
    tokens: int,
    repeats: int,
    timeout_s: float,
    gain: Gain,
) -> tuple[dict[str, Tuning], dict[str, str]]:
    """Return the tunings with what the draft model brings to each, and by variant why there is nothing to say of it.

    Each is measured with the settings of its tuning, for at most ``timeout_s``. Without a draft model the tunings are
    the same.
    """
    if bundle.draft is None:
        return dict(tunings), {}
    found, reasons = dict(tunings), {}
    for variant, tuning in tunings.items():
        plan = make_plan(
            bundle.manifest,
            hardware,
            supports,
            variant=variant,
            tunings={variant: tuning},
            small=bundle.draft.manifest,
            draft=True,
        )
        candidate = next((each for each in plan.candidates if each.eligible and each.tuning is tuning), None)
        if candidate is None:
            reasons[variant] = "There is no draft for its engine, or it does not fit the memory."
            continue
        try:
            brings = gain(Job(str(bundle.path), candidate, tokens, repeats), timeout_s)
            found[variant] = replace(tuning, draft_gain=brings)
        except EdgepackError as error:
            reasons[variant] = error.message
    return found, reasons


def run(job: Job, timeout_s: float) -> float:
    """Measure in a child process. Raises as ``apart.ask``."""
    return apart.ask(__name__, job, float, timeout_s)


def measure(job: Job, runtimes: Runtimes | None = None) -> float:
    """Return how many times as many tokens a second an answer has with the draft model, in this process.

    Answers with it and without take turns, on the bundle's prompts; a quarter of the pairs gain less than is returned,
    so that a busy machine alone makes no draft pay. Raises as ``edgepack.load``, and ``EngineError`` where no answer is
    long enough to tell.
    """
    bundle = open_bundle(job.bundle, verify="sizes")
    with open_candidate(bundle, job.candidate, runtimes=runtimes) as model:
        gains = [
            gain
            for turn in range(2 * job.repeats)
            for prompt in prompts(bundle.manifest)  # another each time, which the draft model has to read as well
            if (gain := _gain(model, prompt, job.tokens, first=turn % 2 == 0)) is not None
        ]
    if not gains:
        raise EngineError(f"No answer of {bundle.manifest.name} has {_FEWEST} tokens, so that nothing can be compared.")
    return sorted(gains)[len(gains) // 4]


def prompts(manifest: Manifest) -> list[str]:
    """Return what answers are measured on: three prompts of the chat template that await one, or else three probes,
    those of a middling length."""
    goldens = manifest.chat.goldens if manifest.chat else []
    asked = [golden.text for golden in goldens if golden.text and golden.add_generation_prompt]
    texts = asked or [probe.text for probe in manifest.tokenizer.probes if not probe.special]
    ordered = sorted(dict.fromkeys(texts), key=len)
    first = max(0, len(ordered) - _PROMPTS) // 2
    return ordered[first : first + _PROMPTS]


def _gain(model: Model, prompt: str, tokens: int, *, first: bool) -> float | None:
    speeds = {}
    for draft in (first, not first):
        result = model.generate(prompt, max_tokens=tokens, draft=draft, on_overflow="truncate_middle", reuse="exact")
        if len(result.token_ids) < _FEWEST or not result.timings.decode_tps:
            return None
        speeds[draft] = result.timings.decode_tps
    return speeds[True] / speeds[False]


if __name__ == "__main__":
    apart.answer(Job, measure)
