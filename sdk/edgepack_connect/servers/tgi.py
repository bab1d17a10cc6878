"""Text Generation Inference: ``router/src/lib.rs``. It binds answers by a form of its own, and has no top_k."""

from __future__ import annotations

from edgepack_connect.capabilities import OPENAI_LOGPROBS, OVERFLOWS, PARSES, Field, plain
from edgepack_connect.openai_form import OpenAIForm
from edgepack_connect.server import Found, Offered, Probe, Server, count_of, listed, text_of

_BOTH = {**plain("max_tokens", "temperature", "top_p", "stop", "seed"), "on_overflow": OVERFLOWS}


async def _recognise(probe: Probe) -> Found | None:
    info = await probe.get("/info")
    name = text_of(info, "model_id")
    context = count_of(info, "max_total_tokens")
    if name is None or context is None:
        return None
    models = [Offered(each.name, context) for each in await listed(probe)]
    return Found(text_of(info, "version"), models or [Offered(name, context)])


SERVER = Server(
    name="TGI",
    chat={
        **_BOTH,
        **OPENAI_LOGPROBS,
        **plain("tools", "tool_choice"),
        "json_schema": Field("response_format.value", beside={"response_format.type": "json"}),
        "regex": Field("response_format.value", beside={"response_format.type": "regex"}),
        "control_tokens": PARSES,
    },
    text={**_BOTH, **plain("repetition_penalty")},
    form=OpenAIForm(),
    recognise=_recognise,
)
