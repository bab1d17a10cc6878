"""edgepack's own server, ``edgepack serve``: it honours what a bundle does, but for what is settled as it starts."""

from __future__ import annotations

from edgepack_connect.capabilities import OLD_LOGPROBS, OPENAI_LOGPROBS, OPENAI_SCHEMA, OPENAI_TOOLS, Field, plain
from edgepack_connect.openai_form import OpenAIForm
from edgepack_connect.server import Found, Offered, Probe, Server, count_of, objects, text_of

_BOTH = plain(
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "seed", "regex", "grammar",
    "prompt_lookup", "draft", "on_overflow", "reuse",
)  # fmt: skip


async def _recognise(probe: Probe) -> Found | None:
    status = await probe.get("/status.json")
    models = [each for each in objects(status, "models") if text_of(each, "bundle_id") is not None]
    if not models:
        return None
    offered = [Offered(name, count_of(each, "context")) for each in models if (name := text_of(each, "name"))]
    return Found(text_of(status, "version"), offered)


SERVER = Server(
    name="edgepack",
    chat={
        **_BOTH,
        **OPENAI_LOGPROBS,
        **OPENAI_TOOLS,
        **plain("thinking", "thinking_tokens", "continue_final", "date"),
        "json_schema": OPENAI_SCHEMA,
        "variables": Field("chat_template_kwargs"),
        "control_tokens": Field("", {"text": None}),
    },
    text={**_BOTH, **OLD_LOGPROBS},
    form=OpenAIForm(),
    recognise=_recognise,
)
