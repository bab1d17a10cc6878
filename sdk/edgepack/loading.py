"""From a bundle to a model that answers: open, plan, check, open the engine. Each step is a module of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Never

from edgepack import runtime
from edgepack.bundle import Bundle, listed, open_bundle
from edgepack.decoding.lookup import PAYS
from edgepack.decoding.repro import Setup, machine, packages
from edgepack.device.hardware import Hardware, detect
from edgepack.device.planning import Candidate, Plan, make_plan
from edgepack.device.tuning import read_tunings
from edgepack.errors import BundleDamagedError, EngineError, UsageError, check_options
from edgepack.isolation import probing
from edgepack.runtime import Options, Runtime, Session, Support

if TYPE_CHECKING:
    from edgepack.model import Model
    from edgepack.text.chat import ChatTemplate
    from edgepack.text.tokenizer import Tokenizer

Runtimes = Mapping[str, Runtime]
Where = str | os.PathLike[str] | Bundle


def load(
    bundle: Where,
    backend: str | None = None,
    context: int | None = None,
    kv_cache: str | None = None,
    *,
    variant: str | None = None,
    threads: int | None = None,
    strict: bool = False,
    isolate: bool = False,
    runtimes: Runtimes | None = None,
    **unknown: Never,
) -> Model:
    """Open a bundle on the engine that suits this machine, or on the one that is asked for.

    ``backend`` is a runtime's name ("gguf", "onnx", "mlx"), ``variant`` one of the bundle's; ``context`` is in tokens
    (without one: what the bundle allows, at most 4096) and is never reduced; ``kv_cache`` is "f32" or "f16";
    ``threads`` overrides what ``edgepack tune`` found, or else min(affinity, cgroup quota, physical cores). ``strict``
    refuses a substitute: another candidate than the one that would be first if everything ran, or a CPU where the
    machine has an accelerator. ``isolate`` runs the engine in a process of its own, whose crash or hang is an error of
    the call that meets it. ``runtimes`` replaces the installed ones, for tests of an application:
    ``{"fake": FakeRuntime()}``.

    Sizes of all files are compared with the manifest, and the sha256 of every shared file and of the variant that is
    chosen, before an engine sees a byte; the first time that a device opens a bundle, its tokenizer and its chat
    template must also give what they gave when it was built. Raises ``BundleError``, ``ContextTooLargeError``,
    ``EngineMissingError``, ``EngineError`` or ``UsageError``; never tries another candidate than the plan's first.
    """
    check_options("load", unknown, ("backend", "context", "kv_cache", "variant", "threads", "strict", "isolate"))
    opened = _open(bundle)
    chosen = plan(
        opened,
        context=context,
        backend=backend,
        variant=variant,
        kv_cache=kv_cache,
        strict=strict,
        runtimes=runtimes,
    ).choice
    return open_candidate(opened, chosen, threads=threads, isolate=isolate, runtimes=runtimes)


def plan(
    bundle: Where,
    *,
    context: int | None = None,
    backend: str | None = None,
    variant: str | None = None,
    kv_cache: str | None = None,
    strict: bool = False,
    runtimes: Runtimes | None = None,
) -> Plan:
    """Return what ``load`` would choose with the same arguments, and every other candidate, each with its reason."""
    opened = _open(bundle)
    hardware = detect()
    held = {each.runtime for each in opened.manifest.variants}
    # An engine that nobody asked for is not worth the seconds that its probe may take.
    supports = probe_all(hardware, {backend} & held if backend else held, runtimes)
    return make_plan(
        opened.manifest,
        hardware,
        supports,
        context=context,
        backend=backend,
        variant=variant,
        kv_cache=kv_cache,
        tunings=read_tunings(opened.id, hardware, supports),
        strict=strict,
    )


def open_candidate(
    bundle: Bundle,
    candidate: Candidate,
    *,
    threads: int | None = None,
    isolate: bool = False,
    runtimes: Runtimes | None = None,
) -> Model:
    """Check the candidate's files against their sha256, on a device's first opening the text side against the bundle's
    vectors, and load them. Raises as ``load``."""
    from edgepack.isolation.isolate import isolated
    from edgepack.measuring.first_open import check_text
    from edgepack.model import Model

    started = perf_counter()
    options = with_threads(candidate.options, threads)
    bundle.check([candidate.variant])
    tokenizer, template = text_side(bundle)
    check_text(bundle, tokenizer, template)
    engine = isolated(candidate.runtime, runtimes) if isolate else find(candidate.runtime, runtimes)
    return Model(
        manifest=bundle.manifest,
        setup=_setup(bundle, candidate, options),
        opening=lambda: open_session(bundle, candidate, options, engine),
        options=options,
        tokenizer=tokenizer,
        template=template,
        lookup_pays=candidate.tuning is not None and (candidate.tuning.batch_cost or PAYS) < PAYS,
        began=started,
    )


def open_session(bundle: Bundle, candidate: Candidate, options: Options, engine: Runtime) -> Session:
    """Open a candidate's engine, without a check of its files. Raises as ``load``, and ``EngineError`` where the engine
    does not run on the device that the plan says."""
    session = engine.open(bundle.variant_path(candidate.variant), bundle.manifest.decoder, options)
    if session.device != candidate.device:
        ran = session.device
        session.close()
        raise EngineError(
            f"{candidate.variant} was to run on {candidate.device}, and {candidate.runtime} put it on {ran}.",
            hint="See what this machine offers: edgepack doctor",
        )
    return session


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
    )


def with_threads(options: Options, threads: int | None) -> Options:
    """Return the options with so many threads, as they are for None. Raises ``UsageError`` for less than one."""
    if threads is None:
        return options
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise UsageError(f"threads cannot be {threads!r}.", hint="It is a number of threads, at least 1.")
    return replace(options, threads=threads)


def text_side(bundle: Bundle) -> tuple[Tokenizer, ChatTemplate | None]:
    """Return a bundle's tokenizer and its chat template, None where it has none."""
    from edgepack.text.chat import FILE as TEMPLATE_FILE
    from edgepack.text.chat import TOOL_USE_FILE, ChatTemplate
    from edgepack.text.tables import FILE, decode
    from edgepack.text.tokenizer import Tokenizer

    facts, chat = bundle.manifest.tokenizer, bundle.manifest.chat
    tokenizer = Tokenizer(decode(bundle.read(FILE)), facts.bos, facts.add_bos)
    if chat is None:
        return tokenizer, None
    names = ("tokenizer_config.json", "special_tokens_map.json")
    bos, eos = special_tokens([bundle.read(name) for name in names if name in listed(bundle.manifest)])
    day = chat.date.day if chat.date is not None and chat.date.policy == "pinned" else None

    def made(file: str, parts: Sequence[str], tool_use: ChatTemplate | None = None) -> ChatTemplate:
        try:
            source = bundle.read(file).decode()
        except UnicodeDecodeError as error:
            raise BundleDamagedError(f"{file} of the bundle is not UTF-8: {error.reason}.") from None
        return ChatTemplate(source, bos_token=bos, eos_token=eos, date=day, parts=parts, tool_use=tool_use, file=file)

    with_tools = None if chat.tool_use is None else made(TOOL_USE_FILE, chat.tool_use.parts)
    return tokenizer, made(TEMPLATE_FILE, chat.parts, with_tools)


def special_tokens(configs: Iterable[bytes]) -> tuple[str, str]:
    """Return the texts of BOS and EOS that a template may print, "" where there is none.

    ``configs`` are tokenizer_config.json and special_tokens_map.json, as far as they exist; the first that names a
    token decides, as a string or as an object with a "content".
    """
    found = {"bos_token": "", "eos_token": ""}
    for config in reversed(list(configs)):
        try:
            said = json.loads(config)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise BundleDamagedError("The configuration of the bundle's tokenizer is not a JSON object.")
        found |= {name: said[name] for name in found if name in said}
    texts = [token.get("content") if isinstance(token, dict) else token for token in found.values()]
    bos, eos = (text if isinstance(text, str) else "" for text in texts)
    return bos, eos


def probe_all(
    hardware: Hardware, names: Iterable[str] | None = None, runtimes: Runtimes | None = None
) -> dict[str, Support]:
    """Return what each runtime says of itself, by name; of all registered ones unless ``names`` picks some.

    A registered runtime is asked in a child process, so that one which crashes, hangs, or cannot even be imported is
    reported as one that cannot run. Never raises.
    """
    known = sorted(runtimes) if runtimes is not None else runtime.names()
    wanted = known if names is None else [name for name in known if name in set(names)]
    return {name: _probe(name, hardware, runtimes) for name in wanted}


def find(name: str, runtimes: Runtimes | None) -> Runtime:
    """Return the runtime of that name, from ``runtimes`` where they are given, else the registered one."""
    return runtimes[name] if runtimes is not None else runtime.find(name)


def _probe(name: str, hardware: Hardware, runtimes: Runtimes | None) -> Support:
    if runtimes is None:
        return probing.probe(name, hardware)
    return probing.ask(name, runtimes.__getitem__, hardware)


def _open(bundle: Where) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else open_bundle(bundle, verify="sizes")
