"""A runtime without an engine, for the tests of applications: deterministic, instant, and as strict as a real one.

It keeps every promise of the seam in ``edgepack.runtime``, and can be told what to say and when to fail::

    from edgepack import fake

    with fake.model(says="Hello!", thinks="A greeting.") as model:
        result = model.chat([{"role": "user", "content": "Hi"}])
        assert (result.reasoning, result.text) == ("A greeting.", "Hello!")

``fake.model`` gives a whole ``Model`` with a byte-level tokenizer and a chat template, without any file.
``FakeRuntime`` goes where a runtime goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from edgepack import fake_facts
from edgepack.bundle.manifest import Manifest
from edgepack.bundle.thinking import Switch, Thinking
from edgepack.decoding.repro import Setup
from edgepack.fake_runtime import FakeRuntime as FakeRuntime
from edgepack.fake_runtime import FakeSession as FakeSession
from edgepack.model import Model
from edgepack.runtime import Options
from edgepack.text.chat import ChatTemplate
from edgepack.text.tokenizer import Tokenizer

_THINKING = Thinking(
    opening="<think>",
    closing="</think>",
    ending="\n</think>\n\n",
    skipped="<think>\n\n</think>\n\n",
    switch=Switch(variable="enable_thinking", on=True, off=False),
)
_TEMPLATE = """
{%- for message in messages %}<|start|>{{ message.role }}
{{ message.content }}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant
{% endif %}"""
_SKIPS = "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"


def model(
    *,
    says: str | Sequence[int] = (),
    thinks: str | None = None,
    context: int = 4096,
    fail_at: int | None = None,
    nan_at: int | None = None,
    before_step: Callable[[FakeSession], None] | None = None,
    template: str = _TEMPLATE,
    sequences: int = 1,
) -> Model:
    """Return a ``Model`` over a ``FakeRuntime``, made of nothing.

    Token ids 0 to 255 are the bytes of UTF-8, 256 is ``<|end|>``, which ends a turn, 257 is ``<|start|>``; there is
    no BOS. ``says`` is the answer to every prompt: a text, or ids for an answer that is no text or does not end.
    ``thinks`` is what it thinks before it says so, between ``<think>`` and ``</think>``, unless it is asked with
    ``thinking=False``. ``template`` is the chat template, ``sequences`` are ``load``'s; the other arguments are
    ``FakeRuntime``'s.
    """
    script = [*says.encode(), fake_facts.END] if isinstance(says, str) else list(says)
    thought = b"" if thinks is None else _THINKING.whole(thinks, "").encode()
    manifest = fake_facts.manifest(None if thinks is None else _THINKING)
    options = Options(context=context, threads=1, kv_cache="f32", sequences=sequences)
    runtime = FakeRuntime(
        [*thought, *script],
        fail_at=fail_at,
        nan_at=nan_at,
        before_step=before_step,
        aside=len(thought),
        closed=_THINKING.ending.lstrip().encode() if thought else b"",
    )
    if thinks is not None:
        template += _SKIPS
    return _opened(manifest, runtime, options, ChatTemplate(template, bos_token="", eos_token="<|end|>", date=None))


def embedding_model(
    *,
    size: int = 8,
    prompts: Mapping[str, str] = MappingProxyType({}),
    context: int = 4096,
    fail_at: int | None = None,
    before_step: Callable[[FakeSession], None] | None = None,
) -> Model:
    """Return a ``Model`` that embeds, with the tokens of ``model``: each text ends with ``<|end|>``.

    Its vectors have ``size`` elements and the length 1, and another text, or another prompt, has another one. The other
    arguments are ``FakeRuntime``'s.
    """
    manifest = fake_facts.embedding_manifest(size, prompts)
    options = Options(context=context, threads=1, kv_cache="f32")
    return _opened(manifest, FakeRuntime(fail_at=fail_at, before_step=before_step), options, None)


def _opened(manifest: Manifest, runtime: FakeRuntime, options: Options, template: ChatTemplate | None) -> Model:
    return Model(
        manifest=manifest,
        setup=setup(manifest, options),
        opening=lambda: runtime.open(Path(), manifest.decoder, options),
        options=options,
        tokenizer=Tokenizer(fake_facts.tables(), None, False),
        template=template,
    )


def setup(manifest: Manifest, options: Options) -> Setup:
    """Return what a model of a fake manifest is loaded as."""
    return Setup(
        bundle="",
        bundle_id="0" * 64,
        variant=manifest.variants[0].id,
        backend=FakeRuntime.name,
        engine="1",
        device="cpu",
        context=options.context,
        kv_cache=options.kv_cache,
        threads=options.threads,
        chunk=options.chunk,
        repack=None,
        machine="",
        packages={},
        sequences=options.sequences,
    )
