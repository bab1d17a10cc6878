"""The plan: which variant of a bundle runs here, on which engine, with what memory, and why. Pure arithmetic.

It opens no file and asks no engine: a manifest, the facts of the machine and what each runtime says of itself go in,
ranked candidates come out, each with its reason. Nothing is left out and nothing falls back: a candidate that cannot
run stays in the list and says why, and where none can, ``Plan.choice`` raises that reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal, cast, get_args

from edgepack.bundle.decoder import KvCache
from edgepack.bundle.manifest import Manifest, Variant
from edgepack.bundle.warm import Warmth
from edgepack.device.drafts import Draft, Small, check_draft, find_draft
from edgepack.device.engine import Options, Support, older
from edgepack.device.hardware import Hardware
from edgepack.device.limits import check_arguments, context_limit, default_kv_cache, kv_caches
from edgepack.device.memory import CHUNK, Memory, Payload, human, largest_context, needed
from edgepack.device.rule import place_on_cpu
from edgepack.device.seconds import Seconds, Turn, expected
from edgepack.device.tuning import Tuning, measured
from edgepack.errors import ContextTooLargeError, EdgepackError, EngineMissingError, brief

# A long profile (131072) costs gigabytes of KV cache; most turns need far less, and more is one argument away.
DEFAULT_CONTEXT = 4096
_CLEARLY = 1.1  # times as long: certain rates are within a tenth, see docs/benchmarks.md
Obstacle = Literal["memory", "kv cache", "draft", "oracle", "engine", "not asked for"]
# Fastest first; what the table does not know goes after it, accelerators before CPUs.
_ORDER = {("mlx", "metal"): 0, ("gguf", "metal"): 1, ("gguf", "cuda"): 1, ("onnx", "cuda"): 2}
_OTHERS, _CPU = 3, 4
_Rule = tuple[bool, int, float, str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One variant on the best device that its runtime offers here, and why it stands where it does.

    ``device`` is None where the runtime offers none. ``fits_context`` is the largest context that the memory holds, 0
    where not even one token fits. ``engine`` is its version, ``package`` its distribution with that one's. ``obstacle``
    is what keeps the candidate from running (None: nothing), ``reason`` the same in words, or else what it has in its
    favour; ``hint`` is the next step, if any. ``tuning`` is what was measured of it on this device, as far as
    ``options`` come from there; ``idle`` is an accelerator of the machine that it does not use. ``seconds`` is what an
    answer takes, as far as it is known: from ``tuning``, or else predicted from the engine's own speed. ``draft`` is
    what guesses for it, or None. ``place`` is the variant's on a CPU where neither is known. ``warm``: see ``Warmth``.
    """

    variant: str
    runtime: str
    device: str | None
    bits: float
    proven: bool
    options: Options
    memory: Memory
    fits_context: int
    engine: str | None = None
    obstacle: Obstacle | None = None
    reason: str = ""
    hint: str | None = None
    tuning: Tuning | None = None
    idle: str | None = None
    seconds: Seconds | None = None
    draft: Draft | None = None
    package: str | None = None
    place: int = 0
    warm: Warmth | None = None

    def __repr__(self) -> str:
        device = f" on {self.device}" if self.device else ""
        can = "can run" if self.eligible else "cannot run"
        return f"<Candidate {brief(self.variant)}, {self.runtime}{device}, {can}: {brief(self.reason)}>"

    @property
    def eligible(self) -> bool:
        """Whether it can run here as asked."""
        return self.obstacle is None


@dataclass(frozen=True, slots=True)
class Plan:
    """All candidates, best first. ``context`` is the one planned for, ``limit`` the largest that the bundle allows;
    ``proven`` says whether a proof covers that limit or only the payloads are written for it; ``strict``, whether
    ``choice`` refuses a substitute. ``turn`` is the question that it ranks for."""

    context: int
    limit: int
    proven: bool
    backend: str | None
    candidates: tuple[Candidate, ...]
    strict: bool = False
    turn: Turn = field(default_factory=Turn)

    def __repr__(self) -> str:
        able = [each for each in self.candidates if each.eligible]
        first = f", {brief(able[0].variant)} on {able[0].device} first" if able else ""
        return f"<Plan for a context of {self.context}: {len(able)} of {len(self.candidates)} variants can run{first}>"

    @property
    def choice(self) -> Candidate:
        """The first eligible candidate.

        Raises ``ContextTooLargeError`` where only memory is lacking, else ``EngineMissingError``; both name the reason
        of every candidate that was asked for. Where the plan is strict, ``EngineMissingError`` also for a substitute:
        a candidate that is first only because a better one cannot run, or that leaves an accelerator idle.
        """
        chosen = next((candidate for candidate in self.candidates if candidate.eligible), None)
        if chosen is None:
            raise self._refusal()
        if self.strict and (refusal := self._substitution(chosen)):
            raise refusal
        return chosen

    @property
    def tuned(self) -> bool:
        """Whether any candidate was measured on this device."""
        return any(candidate.tuning for candidate in self.candidates)

    def _substitution(self, chosen: Candidate) -> EdgepackError | None:
        for candidate in self.candidates:
            if candidate.eligible or candidate.obstacle in ("not asked for", "draft", "oracle"):
                continue
            # What was never measured here, because it cannot run, is compared by rule.
            first = min(candidate, chosen, key=_preference if candidate.tuning else _rule)
            if first is candidate:
                return EngineMissingError(
                    f"{chosen.variant} would be a substitute for {candidate.variant}: {candidate.reason}.",
                    hint=candidate.hint,
                )
        if chosen.idle and not any(each.eligible and each.device == chosen.idle for each in self.candidates):
            return EngineMissingError(
                f"{chosen.variant} would run on the {chosen.device}, a substitute: {chosen.reason}.", hint=chosen.hint
            )
        return None

    def _refusal(self) -> EdgepackError:
        asked = [candidate for candidate in self.candidates if candidate.obstacle != "not asked for"]
        if short := [candidate for candidate in asked if candidate.obstacle == "memory"]:
            best = max(short, key=lambda candidate: candidate.fits_context)
            message = f"A context of {self.context} does not fit the memory: {best.variant} {best.reason}."
            return ContextTooLargeError(message, hint=best.hint)
        reasons = "; ".join(dict.fromkeys(f"{candidate.runtime}: {candidate.reason}" for candidate in asked))
        hints = list(dict.fromkeys(candidate.hint for candidate in asked if candidate.hint))
        hints[1:] = [hint.removeprefix("Install it with: ") for hint in hints[1:]]
        hint = " Or: ".join(hints) or "See what this machine offers: edgepack doctor"
        return EngineMissingError(f"No engine can run this bundle here: {reasons or 'it holds no variant'}.", hint=hint)


def make_plan(
    manifest: Manifest,
    hardware: Hardware,
    supports: Mapping[str, Support],
    *,
    context: int | None = None,
    backend: str | None = None,
    variant: str | None = None,
    kv_cache: str | None = None,
    tunings: Mapping[str, Tuning] | None = None,
    strict: bool = False,
    turn: Turn | None = None,
    small: Manifest | None = None,
    draft: bool | None = None,
    sequences: int = 1,
) -> Plan:
    """Rank the bundle's variants for a machine.

    ``supports`` maps a runtime's name to what it said of itself. ``context`` is in tokens; without one it is the
    bundle's limit, at most 4096. ``backend`` and ``variant`` restrict the choice; ``kv_cache`` is "f32", "f16" or "q8",
    without one "f32" for an f32 variant and "f16" where the engine offers it. ``tunings`` maps a variant to what was
    measured of it on this device. ``strict``: see ``Plan.choice``. ``turn`` is the question to rank for. ``small`` is
    the manifest of the bundle's draft model, which is loaded where ``draft`` asks for it, and for None where it was
    measured to pay and fits the memory. ``sequences`` are the texts that are to be held at a time.

    Order: first what was measured, by the seconds to an answer, with the settings that reached them, unless those do
    not fit the memory; then by rule: MLX on Metal; GGUF on Metal or CUDA; ONNX on CUDA; then the CPU: by the predicted
    seconds to an answer, where they are known for certain of all that could run there, else as ``place_on_cpu`` says;
    within one engine the fewest bits per weight first, because decoding waits for memory. Unproven variants come after
    all proven ones.
    Where the memory lacks room for the copy of the weights that llama.cpp rearranges, it is to make none.

    Raises ``UsageError`` for an argument that no bundle could honour, ``ContextTooLargeError`` for a context beyond
    the limit.
    """
    check_arguments(manifest, context, backend, variant, kv_cache, sequences)
    check_draft(manifest, draft, small, sequences)
    limit, proven = context_limit(manifest)
    if context is not None and context > limit:
        what = "was verified for" if proven else "is written for (unproven)"
        raise ContextTooLargeError(
            f"A context of {context} is more than the {limit} tokens that {manifest.name} {what}.",
            hint=f"Ask for context={limit} or less.",
        )
    planned = context or min(limit, DEFAULT_CONTEXT)
    asked = _Asked(planned, backend, variant, cast("KvCache | None", kv_cache), turn or Turn(), small, draft, sequences)
    found = [
        _candidate(manifest, each, hardware, supports.get(each.runtime), asked, (tunings or {}).get(each.id))
        for each in manifest.variants
    ]
    # Seconds and bits cannot be compared, nor a figure that others disturbed with one that they did not: either all
    # that could run on the CPU are predicted, or none counts.
    on_cpu = [each for each in found if each.eligible and each.device == "cpu" and each.tuning is None]
    predicted = all(each.seconds and each.seconds.certain for each in on_cpu)
    found.sort(key=lambda each: _rank(each, predicted=predicted))
    told = tuple(_with_what_is_slow(each, found) for each in found)
    return Plan(planned, limit, proven, backend, told, strict, asked.turn)


@dataclass(frozen=True, slots=True)
class _Asked:
    context: int
    backend: str | None
    variant: str | None
    kv_cache: KvCache | None
    turn: Turn
    small: Manifest | None
    draft: bool | None
    sequences: int


def _candidate(
    manifest: Manifest,
    variant: Variant,
    hardware: Hardware,
    support: Support | None,
    asked: _Asked,
    tuning: Tuning | None,
    repack: bool | None = None,
) -> Candidate:
    offered = kv_caches(variant, support, manifest.decoder)
    kv = asked.kv_cache or default_kv_cache(variant.quantization.scheme, offered)
    options = Options(asked.context, hardware.threads, kv, CHUNK, repack, sequences=asked.sequences)
    if tuning is not None:
        options = replace(options, threads=tuning.threads, chunk=tuning.chunk, repack=tuning.repack)
    device = support.device(kv) if support else None
    speed = support.speed if support and device == "cpu" else None
    available = hardware.memory_available if hardware.memory_total else None
    payload = Payload(
        decoder=manifest.decoder,
        runtime=variant.runtime,
        scheme=variant.quantization.scheme,
        weights=variant.weights_bytes + (manifest.embedding.dense_bytes if manifest.embedding else 0),
        rows=manifest.tokenizer.rows,
        device=device or "cpu",
        code=support.code if support else None,
        loading=variant.loading_bytes,
    )
    small = find_draft(asked.small, asked.draft, variant.id, payload, options, tuning)
    memory = needed(payload, options, available)
    candidate = Candidate(
        variant=variant.id,
        runtime=variant.runtime,
        device=device,
        bits=variant.quantization.bits,
        proven=variant.proof is not None,
        options=options,
        memory=memory if small is None else replace(memory, draft=small.bytes(options)),
        fits_context=_largest_context(manifest, payload, options, available, small),
        engine=support.version if support else None,
        tuning=tuning,
        idle=hardware.accelerators[0] if hardware.accelerators and device in (None, "cpu") else None,
        seconds=expected(manifest.decoder, variant.quantization, speed, options, asked.turn, tuning),
        draft=None if small is None else small.plan(options),
        package=support.package if support else None,
        place=place_on_cpu(variant, manifest.decoder, support),
    )
    obstacle, reason, hint = _obstacle(candidate, variant, support, offered, asked)
    if obstacle == "memory" and small is not None and asked.draft is None:
        return _candidate(manifest, variant, hardware, support, replace(asked, draft=False), tuning, repack)
    if obstacle == "memory" and tuning is not None:
        untuned = _candidate(manifest, variant, hardware, support, asked, None)
        if untuned.eligible:
            return untuned
    elif obstacle == "memory" and needed(payload, replace(options, repack=False)).total < memory.total:
        return _candidate(manifest, variant, hardware, support, asked, None, repack=False)
    if obstacle is None and support is not None:
        reason, hint = _merit(candidate, support, asked.turn)
    return replace(candidate, obstacle=obstacle, reason=reason, hint=hint)


def _obstacle(
    candidate: Candidate,
    variant: Variant,
    support: Support | None,
    kv_caches: tuple[KvCache, ...],
    asked: _Asked,
) -> tuple[Obstacle | None, str, str | None]:
    """Return what keeps a candidate from running, in words, and the next step: the first that applies."""
    if asked.variant not in (None, variant.id) or asked.backend not in (None, variant.runtime):
        return "not asked for", f"{asked.variant or asked.backend} was asked for", None
    if asked.draft and candidate.draft is None:
        reason = f"its draft model has no variant for this engine with a KV cache in {candidate.options.kv_cache}"
        return "draft", reason, "Go without one: draft=False."
    if support is None:
        return "engine", f"no runtime called {variant.runtime!r} is registered", None
    install = f"Install it with: {support.install}" if support.install else None
    if candidate.device is None:
        return "engine", (support.reason or "it offers no device here").rstrip("."), install
    if older(support.version, variant.floor):
        return "engine", f"version {support.version} is installed, the variant needs {variant.floor}", install
    kv = candidate.options.kv_cache
    if kv not in kv_caches:
        offered = " or ".join(kv_caches)
        hint = f"Ask for kv_cache={offered}"
        hint += f", or build such a variant with: --kv-cache {kv}" if variant.kv_cache else "."
        return "kv cache", f"it offers a KV cache in {offered}, not in {kv}", hint
    if (variant.runtime, candidate.device) == ("mlx", "cpu") and asked.backend is None and asked.variant is None:
        reason = "on a CPU it is an oracle for small models, far too slow to serve"
        return "oracle", reason, "Ask for it by name: backend=mlx."
    if not (memory := candidate.memory).fits:
        reason = f"needs {human(memory.total)}, {human(memory.available or 0)} are available"
        if candidate.fits_context:
            return "memory", reason, f"The largest context that fits is {candidate.fits_context}."
        return "memory", reason, "Not one token fits: free memory, or take a smaller variant."
    return None, "", None


def _merit(candidate: Candidate, support: Support, turn: Turn) -> tuple[str, str | None]:
    """Return what speaks for an eligible candidate and what to know of it, and how to make it better."""
    parts = [f"{candidate.package or candidate.runtime} on {candidate.device}, {candidate.bits:.2f} bits a weight"]
    if candidate.options.sequences > 1:
        parts.append(f"{candidate.options.sequences} texts at a time")
    if candidate.draft is not None:
        parts.append(f"a draft model guesses for it, {human(candidate.memory.draft)} of its memory")
    if candidate.tuning is not None:
        parts.insert(0, measured(candidate.tuning))
    if candidate.seconds is not None:
        tokens = f"({turn.prompt} + {turn.answer} tokens)"
        beside = "" if candidate.seconds.certain else ", timed beside busy programs"
        parts.insert(0, f"about {candidate.seconds.total:.2g} s to answer {tokens}{beside}")
    if candidate.tuning is None and candidate.options.repack is False:
        parts.append("the weights as stored, since there is no memory for a copy that is faster")
    if not candidate.proven:
        parts.append("unproven, so it ranks after every proven variant")
    if candidate.options.kv_cache == "f32" and "f16" not in support.kv_caches:
        parts.append("the engine keeps its KV cache in f32")
    if candidate.device == "cuda":
        parts.append("the GPU's own memory is not checked")
    if candidate.idle is None:
        return "; ".join(parts), f"A faster engine: {support.better}" if support.better else None
    needed = support.needs.get(candidate.idle, candidate.options.kv_cache)
    if needed != candidate.options.kv_cache:
        parts.append(f"{candidate.idle} stays idle: it takes variants with a KV cache in {needed}")
        return "; ".join(parts), f"Build such a variant with: --kv-cache {needed}"
    why = f": {support.reason.rstrip('.')}" if support.reason else ""
    parts.append(f"{candidate.idle} stays idle{why}")
    return "; ".join(parts), f"Install it with: {support.install}" if support.install else None


def _with_what_is_slow(candidate: Candidate, others: Sequence[Candidate]) -> Candidate:
    """Say of a candidate that one with more bits answers clearly sooner on the same engine, and in the same way known:
    then it is its types that are slow on this processor."""

    def known(each: Candidate) -> tuple[object, ...]:
        return each.runtime, each.device, each.tuning is None, each.eligible

    def total(each: Candidate) -> float:
        return each.seconds.total if each.seconds and each.seconds.certain else inf

    alike = [each for each in others if known(each) == known(candidate) and each.bits > candidate.bits]
    best = min(alike, key=total, default=candidate)
    if not candidate.eligible or not total(best) * _CLEARLY < total(candidate) < inf:
        return candidate
    slow = f"its types are slow here: {total(candidate) / total(best):.1f}x as long as {best.variant}, of more bits"
    return replace(candidate, reason=f"{candidate.reason}; {slow}")


def _rank(candidate: Candidate, *, predicted: bool) -> tuple[int, bool, float, _Rule]:
    obstacle = get_args(Obstacle).index(candidate.obstacle) + 1 if candidate.obstacle else 0
    unproven, seconds, rule = _preference(candidate)
    if predicted and candidate.seconds and candidate.tuning is None and candidate.eligible:
        rule = unproven, _CPU, candidate.seconds.total, candidate.variant
    return obstacle, unproven, seconds, rule


def _preference(candidate: Candidate) -> tuple[bool, float, _Rule]:
    """Return what orders candidates that could all run: the measured ones by their time, then the others by rule."""
    seconds = candidate.seconds.total if candidate.tuning and candidate.seconds else inf
    return not candidate.proven, seconds, _rule(candidate)


def _rule(candidate: Candidate) -> _Rule:
    """Return what orders candidates before anything was measured; where no device is offered, by the best there is."""
    device = candidate.device or candidate.idle or "cpu"
    other = _CPU + candidate.place if device == "cpu" or candidate.device is None else _OTHERS
    return not candidate.proven, _ORDER.get((candidate.runtime, device), other), candidate.bits, candidate.variant


def _largest_context(
    manifest: Manifest, payload: Payload, options: Options, available: int | None, small: Small | None
) -> int:
    def total(context: int) -> int:
        at = replace(options, context=context)
        return needed(payload, at).total + (0 if small is None else small.bytes(at))

    return largest_context(total, context_limit(manifest)[0], available)
