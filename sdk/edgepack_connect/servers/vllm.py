"""vLLM: https://docs.vllm.ai, ``vllm/entrypoints/openai/*/protocol.py``."""

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
    **plain("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "seed"),
    "json_schema": OPENAI_SCHEMA,
    "regex": Field("structured_outputs.regex", since=(0, 12)),
    "on_overflow": OVERFLOWS,
}


async def _recognise(probe: Probe) -> Found | None:
    if not await owned_by(probe, "vllm"):
        return None
    return Found(text_of(await probe.get("/version"), "version"), await listed(probe))


SERVER = Server(
    name="vLLM",
    chat={
        **_BOTH,
        **OPENAI_LOGPROBS,
        **OPENAI_TOOLS,
        "variables": Field("chat_template_kwargs"),
        "continue_final": CONTINUES,
        "control_tokens": PARSES,
    },
    text={**_BOTH, **OLD_LOGPROBS},
    # Ids of tokens, and a count with each piece: so what was cancelled is counted too.
    form=OpenAIForm(
        {"return_token_ids": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    ),
    recognise=_recognise,
)
