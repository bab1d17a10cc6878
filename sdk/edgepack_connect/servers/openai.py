"""Anything else that speaks OpenAI's interface: https://platform.openai.com/docs/api-reference."""

from __future__ import annotations

from edgepack_connect.capabilities import OLD_LOGPROBS, OPENAI_LOGPROBS, OPENAI_SCHEMA, OPENAI_TOOLS, plain
from edgepack_connect.openai_form import OpenAIForm
from edgepack_connect.server import Found, Probe, Server, listed

_BOTH = plain("max_tokens", "temperature", "top_p", "stop", "seed")


async def _recognise(probe: Probe) -> Found | None:
    return Found(None, await listed(probe))


SERVER = Server(
    name="OpenAI's interface",
    chat={**_BOTH, **OPENAI_LOGPROBS, **OPENAI_TOOLS, "json_schema": OPENAI_SCHEMA},
    text={**_BOTH, **OLD_LOGPROBS},
    form=OpenAIForm(),
    recognise=_recognise,
)
