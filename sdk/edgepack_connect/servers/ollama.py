"""Ollama: ``docs/api.md`` and ``api/types.go``. It is asked through its own interface, which takes more options."""

from __future__ import annotations

from edgepack_connect.capabilities import OVERFLOWS, PARSES, Field
from edgepack_connect.ollama_form import OllamaForm
from edgepack_connect.server import Found, Probe, Server, listed, text_of

_BOTH = {
    "max_tokens": Field("options.num_predict"),
    "temperature": Field("options.temperature"),
    "top_p": Field("options.top_p"),
    "top_k": Field("options.top_k"),
    "min_p": Field("options.min_p"),
    "repetition_penalty": Field("options.repeat_penalty", beside={"options.repeat_last_n": -1}),
    "stop": Field("options.stop"),
    "seed": Field("options.seed"),
    "json_schema": Field("format"),
    "logprobs": Field("logprobs", {True: True}, since=(0, 12, 11)),
    "n_best": Field("top_logprobs", since=(0, 12, 11)),
    "on_overflow": OVERFLOWS,
}


async def _recognise(probe: Probe) -> Found | None:
    version = text_of(await probe.get("/api/version"), "version")
    return None if version is None else Found(version, await listed(probe))


SERVER = Server(
    name="Ollama",
    chat={**_BOTH, "tools": Field("tools"), "thinking": Field("think"), "control_tokens": PARSES},
    text=_BOTH,
    form=OllamaForm(),
    recognise=_recognise,
)
