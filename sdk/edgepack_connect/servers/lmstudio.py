"""LM Studio: https://lmstudio.ai/docs, OpenAI compatibility and REST API. What it does with a prompt that is too long
is a setting of its own, so that nothing can be asked of it."""

from __future__ import annotations

from edgepack_connect.capabilities import OPENAI_SCHEMA, Field, plain
from edgepack_connect.openai_form import OpenAIForm
from edgepack_connect.server import Found, Offered, Probe, Server, count_of, objects, text_of

_BOTH = {
    **plain("max_tokens", "temperature", "top_p", "top_k", "stop", "seed"),
    "repetition_penalty": Field("repeat_penalty"),
}


async def _recognise(probe: Probe) -> Found | None:
    models = [each for each in objects(await probe.get("/api/v0/models"), "data") if "compatibility_type" in each]
    if not models:
        return None
    writing = [each for each in models if each.get("type") != "embeddings"]
    offered = [Offered(name, count_of(each, "max_context_length")) for each in writing if (name := text_of(each, "id"))]
    return Found(None, offered)


SERVER = Server(
    name="LM Studio",
    chat={**_BOTH, **plain("tools"), "json_schema": OPENAI_SCHEMA},
    text=_BOTH,
    form=OpenAIForm(),
    recognise=_recognise,
)
