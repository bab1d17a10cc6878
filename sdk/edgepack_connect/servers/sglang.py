"""SGLang: https://docs.sglang.ai, ``python/sglang/srt/entrypoints/openai/protocol.py``. A seed counts only where the
server was started to be deterministic, and is passed over otherwise: so none is sent."""

from __future__ import annotations

from edgepack_connect.capabilities import (
    CONTINUES,
    OLD_LOGPROBS,
    OPENAI_LOGPROBS,
    OPENAI_SCHEMA,
    OPENAI_TOOLS,
    OVERFLOWS,
    PARSES,
    Field,
    plain,
)
from edgepack_connect.openai_form import OpenAIForm
from edgepack_connect.server import Found, Probe, Server, listed, owned_by, text_of

_BOTH = {
    **plain("max_tokens", "temperature", "top_p", "min_p", "repetition_penalty", "stop", "regex"),
    "top_k": Field("top_k", instead={0: -1}),
    "json_schema": OPENAI_SCHEMA,
    "on_overflow": OVERFLOWS,
}


async def _recognise(probe: Probe) -> Found | None:
    if not await owned_by(probe, "sglang"):
        return None
    return Found(text_of(await probe.get("/server_info"), "version"), await listed(probe))


SERVER = Server(
    name="SGLang",
    chat={
        **_BOTH,
        **OPENAI_LOGPROBS,
        **OPENAI_TOOLS,
        "variables": Field("chat_template_kwargs"),
        "continue_final": CONTINUES,
        "control_tokens": PARSES,
    },
    text={**_BOTH, **OLD_LOGPROBS},
    form=OpenAIForm(),
    recognise=_recognise,
)
