"""Replay of a variant: its self-test, run again through its engine on this machine."""

from __future__ import annotations

import numpy as np

from edgepack.bundle.embedding import VectorTest
from edgepack.bundle.files import Bundle
from edgepack.bundle.manifest import SelfTest, Variant
from edgepack.device.hardware import Hardware
from edgepack.device.limits import default_kv_cache, kv_caches
from edgepack.engines import Runtimes, find, probe_all
from edgepack.errors import EdgepackError
from edgepack.isolation import isolate
from edgepack.pooling import cosine, dense_of, pooled
from edgepack.runtime import Hidden, Options, Session, Support
from edgepack.text.replay import Replay, compared

NEAR = 0.99
"""The least cosine between a vector and the one that the build's engine made. Another processor's kernels round
otherwise, by as much as the engine's rounding costs."""


def replay_variant(bundle: Bundle, variant: Variant, hardware: Hardware, runtimes: Runtimes | None = None) -> Replay:
    """Run a variant's self-test through its engine and compare the likeliest token at every position that has one, or
    the vector of a text.

    A registered engine runs in a process of its own, where the system can have one. An engine that is not here, or a
    variant without a self-test, is skipped with its reason; an engine that fails, crashes or hangs differs.
    """
    test = variant.vector_test or variant.self_test
    if test is None:
        return Replay(variant.id, "skipped", 0, "it has no self-test: it was built unproven")
    support = probe_all(hardware, {variant.runtime}, runtimes).get(variant.runtime)
    if support is None or not support.devices:
        reason = support.reason if support else f"no runtime called {variant.runtime!r} is registered"
        return Replay(variant.id, "skipped", 0, (reason or "its engine offers no device here").rstrip("."))
    if not test.ids or (isinstance(test, SelfTest) and len(test.ids) != len(test.top1)):
        return Replay(variant.id, "differs", 0, "its self-test has no ids, or not one answer for each")
    try:
        problems, checked = _run(bundle, variant, test, hardware, support, runtimes)
    except (EdgepackError, ValueError) as error:
        return Replay(variant.id, "differs", 0, str(error))
    return compared(variant.id, checked, problems)


def _run(
    bundle: Bundle,
    variant: Variant,
    test: SelfTest | VectorTest,
    hardware: Hardware,
    support: Support,
    runtimes: Runtimes | None,
) -> tuple[list[str | None], int]:
    kv = default_kv_cache(variant.quantization.scheme, kv_caches(variant, support, bundle.manifest.decoder))
    options = Options(context=len(test.ids), threads=hardware.threads, kv_cache=kv)
    apart = runtimes is None and isolate.available()
    engine = isolate.IsolatedRuntime(variant.runtime) if apart else find(variant.runtime, runtimes)
    session = engine.open(bundle.variant_path(variant.id), bundle.manifest.decoder, options)
    try:
        if isinstance(test, VectorTest):
            return [_turned(bundle, session, test)], 1
        likeliest = session.forward_all(test.ids).argmax(axis=1)
    finally:
        session.close()
    wanted = [(place, top) for place, top in enumerate(test.top1) if top is not None]
    wrong = [(place, top) for place, top in wanted if int(likeliest[place]) != top]
    problems: list[str | None] = [
        f"token {likeliest[place]} instead of {top} after position {place}" for place, top in wrong
    ]
    return problems, len(wanted)


def _turned(bundle: Bundle, session: Session, test: VectorTest) -> str | None:
    """Say how far the vector of a text is from what it was, None where it is near enough."""
    embedding = bundle.manifest.embedding
    if embedding is None or not isinstance(session, Hidden) or len(test.vector) != embedding.size:
        return "its self-test is a vector, and the bundle embeds no text so"
    vector = pooled(embedding, session.hidden(test.ids), dense_of(bundle))
    found = cosine(vector, np.array(test.vector, np.float32))
    return None if found >= NEAR else f"the cosine of its vector with the recorded one is {found:.4f}, below {NEAR}"
