"""POST /v1/embeddings: the vectors of texts, by a bundle that makes them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from edgepack import EdgepackError, Model
from edgepack_serve.answering import embedded
from edgepack_serve.asked import Body
from edgepack_serve.doors import fields, openai_forms

NEUTRAL: fields.Neutral = {"dimensions": (None,)}
_MOST = 2048


class EmbeddingRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields of a request that are honoured. ``prompt`` is edgepack's own: the name of one of the bundle's prompts,
    as "query", which stands before each text."""

    model: str
    input: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=_MOST)]
    encoding_format: Literal["float", "base64"] = "float"
    prompt: str | None = None


_KNOWN = openai_forms.known_fields(EmbeddingRequest, NEUTRAL, openai_forms.PASSED)


class OpenAIEmbeddings:
    """The question of /v1/embeddings."""

    request, neutral, passed = EmbeddingRequest, NEUTRAL, openai_forms.PASSED

    def read(self, body: Body) -> tuple[str, EmbeddingRequest]:
        """Return what a request asks for. Raises ``UsageError``."""
        asked = fields.read(body, EmbeddingRequest, "An embedding", neutral=NEUTRAL, passed=openai_forms.PASSED)
        return asked.model, asked

    async def answer(self, model: Model, asked: EmbeddingRequest) -> Mapping[str, object]:
        """Return the vectors, in the order of the texts."""
        vectors, tokens = await embedded(model, asked.input, asked.prompt)
        base64 = asked.encoding_format == "base64"
        data: list[dict[str, Any]] = [
            {
                "object": "embedding",
                "index": index,
                "embedding": b64encode(row.astype("<f4").tobytes()).decode() if base64 else row.tolist(),
            }
            for index, row in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": asked.model, "data": data, "usage": usage}

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return an error in OpenAI's form."""
        return openai_forms.fault(error, status, _KNOWN)
