"""From a bundle to a model that answers: open, plan, check, open the engine. Each step is a module of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, TypedDict, Unpack

from edgepack.bundle.files import Bundle, check_id, open_bundle
from edgepack.decoding.draft import Draft
from edgepack.decoding.lookup import PAYS
from edgepack.decoding.repro import Setup, machine, packages
from edgepack.device import addresses
from edgepack.device.hardware import detect
from edgepack.device.planning import Candidate, Plan, make_plan
from edgepack.device.seconds import Turn, schemes
from edgepack.device.tuning import read_tunings
from edgepack.device.unchanged import Unchanged
from edgepack.engines import Runtimes, find, open_session, probe_all, with_threads
from edgepack.errors import ContextTooLargeError, UsageError, check_options
from edgepack.pooling import dense_of
from edgepack.runtime import Options, Runtime
from edgepack.trust.admitting import admit_bundle
from edgepack.warm import told, warming

if TYPE_CHECKING:
    from edgepack.model import Model

VERIFY = "EDGEPACK_VERIFY"

Where = str | os.PathLike[str] | Bundle


class LoadOptions(TypedDict, total=False):
    """How ``load`` and ``aload`` open a bundle, beside its backend, context and KV cache. What is left out, or None, is
    up to edgepack.

    ``variant`` is one of the bundle's. ``threads`` overrides what ``edgepack tune`` found, or else min(affinity, cgroup
    quota, physical cores). ``strict`` refuses a substitute: another candidate than the one that would be first if
    everything ran, or a CPU where the machine has an accelerator. ``isolate`` runs the engine in a process of its own,
    whose crash or hang is an error of the call that meets it. ``draft`` loads the bundle's draft model beside the
    other, which guesses what that will say: None, where ``edgepack tune`` found that it pays. ``sequences`` are the
    requests that run at a time, each with the whole context; others wait. ``id`` ("sha256:...", as
    ``edgepack verify`` prints it) pins the bundle: any other is refused. ``policy`` is the path of a policy.toml: who
    must have signed the bundle, and what else it must be; see ``load``. ``warm`` puts the state of a system prompt that
    lies beside the payload into the cache, where it is that of this engine and these options: None, where this device
    made it or a policy admits the bundle; True, whoever made it. ``verify``: "remembered" or "always", see ``load``.
    ``runtimes`` replaces the installed ones, for tests of an application: ``{"fake": FakeRuntime()}``.
    """

    variant: str | None
    threads: int | None
    strict: bool
    isolate: bool
    draft: bool | None
    sequences: int | None
    id: str | None
    policy: str | os.PathLike[str] | None
    warm: bool | None
    verify: str | None
    runtimes: Runtimes | None


_KNOWN = ("backend", "context", "kv_cache", *LoadOptions.__annotations__)


def load(
    bundle: Where,
    backend: str | None = None,
    context: int | None = None,
    kv_cache: str | None = None,
    **options: Unpack[LoadOptions],
) -> Model:
    """Open a bundle on the engine that suits this machine, or on the one that is asked for.

    ``backend`` is a runtime's name ("gguf", "onnx", "mlx"); ``context`` is in tokens (without one: what the bundle
    allows, at most 4096) and is never reduced; ``kv_cache`` is "f32", "f16" or "q8". The other options, by keyword:
    ``variant``, ``threads``, ``strict``, ``isolate``, ``draft``, ``sequences``, ``id``, ``policy``, ``warm``,
    ``verify``, ``runtimes``; see ``LoadOptions``.

    Sizes of all files are compared with the manifest, and the sha256 of every shared file and of the variant that is
    chosen, before an engine sees a byte; the first time that a device opens a bundle, its tokenizer and its chat
    template must also give what they gave when it was built. With ``verify="remembered"``, the default, a file that
    was found whole since the system started is not read for this again if nobody can have written to it meanwhile
    (``edgepack.device.unchanged``); with "always" it is. ``EDGEPACK_VERIFY`` sets it where the argument does not.

    Where policies are, each must admit the bundle before anything else is done with it: ``policy``, or else the one
    that ``EDGEPACK_POLICY`` names; policy.toml in the store that it is installed in; and the machine's own,
    /etc/edgepack/policy.toml. What one refuses no other admits.

    Raises ``BundleError`` (``TrustError`` where a policy does not admit the bundle), ``ContextTooLargeError``,
    ``EngineMissingError``, ``EngineError`` or ``UsageError``; never tries another candidate than the plan's first.
    """
    check_options("load", options, _KNOWN)
    variant, runtimes, verify = options.get("variant"), options.get("runtimes"), _verify(options.get("verify"))
    opened = _open(bundle, options.get("id"))
    admitted, warm = admit_bundle(opened, options.get("policy")), options.get("warm")
    chosen = _plan(
        opened,
        context=context,
        backend=backend,
        variant=variant,
        kv_cache=kv_cache,
        strict=options.get("strict", False),
        draft=options.get("draft"),
        warm=True if admitted and warm is None else warm,
        sequences=options.get("sequences"),
        runtimes=runtimes,
        timed=has_choice(opened, backend, variant),
    ).choice
    threads, isolate = options.get("threads"), options.get("isolate", False)
    return open_candidate(opened, chosen, threads=threads, isolate=isolate, verify=verify, runtimes=runtimes)


def has_choice(bundle: Bundle, backend: str | None, variant: str | None) -> bool:
    """Whether a load with these arguments has several variants to choose from: only then are engines timed for it."""
    asked = [v for v in bundle.manifest.variants if backend in (None, v.runtime) and variant in (None, v.id)]
    return len(asked) > 1


def plan(
    bundle: Where,
    *,
    context: int | None = None,
    backend: str | None = None,
    variant: str | None = None,
    kv_cache: str | None = None,
    strict: bool = False,
    draft: bool | None = None,
    warm: bool | None = None,
    sequences: int | None = None,
    turn: Turn | None = None,
    timed: bool = True,
    runtimes: Runtimes | None = None,
) -> Plan:
    """Return what ``load`` would choose with the same arguments, and every other candidate, each with its reason.

    Engines that were not ``timed`` on this machine yet are, which takes some seconds; a load spares them where there is
    no choice. ``turn`` is the question to rank for: 512 tokens of a prompt and 128 of an answer, if no other is given.
    """
    return _plan(
        _open(bundle),
        context=context,
        backend=backend,
        variant=variant,
        kv_cache=kv_cache,
        strict=strict,
        draft=draft,
        warm=warm,
        sequences=sequences,
        turn=turn,
        runtimes=runtimes,
        timed=timed,
    )


def _plan(
    bundle: Bundle,
    *,
    context: int | None,
    backend: str | None,
    variant: str | None,
    kv_cache: str | None,
    strict: bool,
    draft: bool | None,
    warm: bool | None,
    sequences: int | None,
    runtimes: Runtimes | None,
    timed: bool,
    turn: Turn | None = None,
) -> Plan:
    """Plan; engines are ``timed`` where that decides something, or is shown."""
    hardware = detect()
    held = {each.runtime for each in bundle.manifest.variants}
    # An engine that nobody asked for is not worth the seconds that its probe may take.
    wanted = {backend} & held if backend else held
    supports = probe_all(hardware, wanted, runtimes, schemes(bundle.manifest) if timed else None)
    made = make_plan(
        bundle.manifest,
        hardware,
        supports,
        context=context,
        backend=backend,
        variant=variant,
        kv_cache=kv_cache,
        tunings=read_tunings(bundle.id, hardware, supports),
        strict=strict,
        small=None if bundle.draft is None else bundle.draft.manifest,
        draft=draft,
        turn=turn,
        sequences=1 if sequences is None else sequences,
    )
    return told(bundle, made, warm)


def open_candidate(
    bundle: Bundle,
    candidate: Candidate,
    *,
    threads: int | None = None,
    isolate: bool = False,
    verify: str = "always",
    runtimes: Runtimes | None = None,
) -> Model:
    """Check the candidate's files against their sha256, on a device's first opening the text side against the bundle's
    vectors, and load them. ``verify`` as in ``load``. Raises as ``load``."""
    from edgepack.first_open import check_text
    from edgepack.isolation.isolate import isolated
    from edgepack.model import Model
    from edgepack.text.opening import text_side

    started = perf_counter()
    options = with_threads(candidate.options, threads)
    _check(bundle, candidate.variant, verify)
    if bundle.draft is not None and candidate.draft is not None:
        _check(bundle.draft, candidate.draft.variant, verify)
    # In this thread, since the engine's own takes some addresses to be used later.
    if short := addresses.shortage(candidate.runtime, candidate.memory.total, options.threads):
        raise ContextTooLargeError(short, hint="Raise that limit, or load with fewer threads or a smaller context.")
    tokenizer, template = text_side(bundle)
    check_text(bundle, tokenizer, template)
    filling = warming(bundle, candidate)
    engine = isolated(candidate.runtime, runtimes) if isolate else find(candidate.runtime, runtimes)
    return Model(
        manifest=bundle.manifest,
        setup=_setup(bundle, candidate, options),
        opening=lambda: open_session(bundle, candidate, options, engine),
        options=options,
        drafting=_drafting(bundle, candidate, threads, engine),
        tokenizer=tokenizer,
        template=template,
        lookup_pays=candidate.tuning is not None and (candidate.tuning.batch_cost or PAYS) < PAYS,
        began=started,
        dense=dense_of(bundle),
        warming=filling,
    )


def _verify(asked: str | None) -> str:
    name, found = ("verify", asked) if asked is not None else (VERIFY, os.environ.get(VERIFY) or "remembered")
    if found not in ("always", "remembered"):
        raise UsageError(f"{name} cannot be {found!r}.", hint="Choose 'always' or 'remembered'.")
    return found


def _check(bundle: Bundle, variant: str, verify: str) -> None:
    if verify == "always":
        bundle.check([variant])
        return
    memory = Unchanged(bundle.path)
    bundle.check([variant], memory=memory)
    memory.save()


def _drafting(bundle: Bundle, candidate: Candidate, threads: int | None, engine: Runtime) -> Callable[[], Draft] | None:
    """Return what opens the draft model that the plan says, None where it says none."""
    small, draft = bundle.draft, candidate.draft
    if small is None or draft is None:
        return None
    options, n_vocab = with_threads(draft.options, threads), small.manifest.decoder.n_vocab
    guessing = replace(candidate, variant=draft.variant)
    return lambda: Draft(
        open_session(small, guessing, options, engine), options, min(n_vocab, bundle.manifest.decoder.n_vocab)
    )


def _setup(bundle: Bundle, candidate: Candidate, options: Options) -> Setup:
    return Setup(
        bundle=str(bundle.path),
        bundle_id=bundle.id,
        variant=candidate.variant,
        backend=candidate.runtime,
        engine=candidate.engine,
        device=candidate.device or "",
        context=options.context,
        kv_cache=options.kv_cache,
        threads=options.threads,
        chunk=options.chunk,
        repack=options.repack,
        machine=machine(),
        packages=packages(),
        spin=options.spin,
        draft=None if candidate.draft is None else candidate.draft.variant,
        sequences=options.sequences,
    )


def _open(bundle: Where, id: str | None = None) -> Bundle:
    if isinstance(bundle, Bundle):
        check_id(bundle.path, bundle.id, id)
        return bundle
    return open_bundle(bundle, verify="sizes", id=id)
