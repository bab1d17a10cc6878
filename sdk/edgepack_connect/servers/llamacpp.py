"""llama-server of llama.cpp: ``tools/server/README.md`` and ``server-common.cpp``. Its grammars are GBNF, not Lark."""

from __future__ import annotations

from edgepack_connect.capabilities import (
    CONTINUES,
    OPENAI_LOGPROBS,
    OPENAI_SCHEMA,
    OPENAI_TOOLS,
    OVERFLOWS,
    PARSES,
    Field,
    plain,
)
from edgepack_connect.openai_form import OpenAIForm
from edgepack_connect.server import Found, Offered, Probe, Server, count_of, listed, owned_by, text_of

_BOTH = {
    **plain("max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed"),
    "repetition_penalty": Field("repeat_penalty", beside={"repeat_last_n": -1}),
    "reuse": Field("cache_prompt", {"all": True}),
    "on_overflow": OVERFLOWS,
}


async def _recognise(probe: Probe) -> Found | None:
    if not await owned_by(probe, "llamacpp"):
        return None
    props = await probe.get("/props")
    settings = None if props is None else props.get("default_generation_settings")
    context = count_of(settings if isinstance(settings, dict) else None, "n_ctx")
    models = [Offered(each.name, context) for each in await listed(probe)]
    return Found(text_of(props, "build_info"), models)


SERVER = Server(
    name="llama-server",
    chat={
        **_BOTH,
        **OPENAI_LOGPROBS,
        **OPENAI_TOOLS,
        "json_schema": OPENAI_SCHEMA,
        "variables": Field("chat_template_kwargs"),
        "continue_final": CONTINUES,
        "control_tokens": PARSES,
        "thinking_tokens": Field("reasoning_budget_tokens", since=(11434,)),
    },
    text={
        **_BOTH,
        "json_schema": Field("json_schema"),
        "logprobs": Field("logprobs", {True: 1}),
        "n_best": Field("logprobs"),
    },
    form=OpenAIForm({"timings_per_token": True}),
    recognise=_recognise,
)
