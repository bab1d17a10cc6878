"""The servers that are known: each is a module that says what it is, as data, and a line here.

They are asked in this order, those first that the list of their models names; the last is anything else that speaks
OpenAI's interface.
"""

from __future__ import annotations

from edgepack_connect.server import Server
from edgepack_connect.servers import edgepack, llamacpp, lmstudio, ollama, openai, sglang, tgi, vllm

SERVERS: tuple[Server, ...] = (
    vllm.SERVER,
    sglang.SERVER,
    llamacpp.SERVER,
    edgepack.SERVER,
    tgi.SERVER,
    lmstudio.SERVER,
    ollama.SERVER,
    openai.SERVER,
)
