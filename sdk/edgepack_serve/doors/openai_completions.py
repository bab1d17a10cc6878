"""POST /v1/completions: a text that is continued as it stands, without a chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from edgepack import Chunk, EdgepackError, Result, TokenLogprob
from edgepack.errors import UsageError
from edgepack_serve.asked import Asked, Body, Head, Writer
from edgepack_serve.doors import fields, openai_forms
from edgepack_serve.doors.openai_forms import event
from edgepack_serve.refusals import status_of

NEUTRAL: fields.Neutral = {
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "suffix": (None, ""),
}


class CompletionRequest(openai_forms.Sampled, kw_only=True):
    """The fields of a request that are honoured."""

    prompt: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=1)]
    max_tokens: openai_forms.Count | None = 16
    echo: bool = False
    logprobs: int | None = None


_KNOWN = openai_forms.known_fields(CompletionRequest, NEUTRAL, openai_forms.PASSED)


class OpenAICompletions:
    """The dialect of /v1/completions."""

    request, neutral, passed = CompletionRequest, NEUTRAL, openai_forms.PASSED

    def read(self, body: Body) -> Asked:
        """Return what a request asks for. Raises ``UsageError``."""
        asked = fields.read(body, CompletionRequest, "A completion", neutral=NEUTRAL, passed=openai_forms.PASSED)
        openai_forms.check_stream(body)
        options = openai_forms.options_of(asked)
        options["max_tokens"] = asked.max_tokens
        if asked.logprobs is not None:
            options["logprobs"], options["n_best"] = True, asked.logprobs
        if asked.echo and asked.logprobs is not None:
            raise UsageError(
                "echo was given beside logprobs.", hint="Those of the prompt are not known: leave one out."
            )
        return Asked(
            model=asked.model,
            prompt=asked.prompt if isinstance(asked.prompt, str) else asked.prompt[0],
            options=options,
            stream=asked.stream,
            n=openai_forms.count_of(asked.n),
            kept={"usage": openai_forms.wants_usage(asked), "echo": asked.echo},
        )

    def whole(self, asked: Asked, results: Sequence[Result], head: Head) -> Mapping[str, object]:
        """Return a completion."""
        begun = asked.prompt if asked.kept["echo"] else ""
        choices = [
            {
                "index": index,
                "text": f"{begun}{result.text}",
                "logprobs": _logprobs(result.logprobs),
                "finish_reason": openai_forms.finish(result),
            }
            for index, result in enumerate(results)
        ]
        usage, timings = openai_forms.usage(results), results[0].timings.to_dict()
        return {**_named(asked, head), "choices": choices, "usage": usage, "timings": timings}

    def writer(self, asked: Asked, head: Head) -> Writer:
        """Return what writes pieces of a completion."""
        return _CompletionWriter(asked, head)

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return an error in OpenAI's form."""
        return openai_forms.fault(error, status, _KNOWN)


class _CompletionWriter:
    content_type = "text/event-stream"

    def __init__(self, asked: Asked, head: Head) -> None:
        self._named = _named(asked, head)
        self._usage, self._n = asked.kept["usage"] is True, asked.n
        self._echo = asked.prompt if asked.kept["echo"] else None
        self._written = [0] * asked.n

    def begin(self) -> Iterable[bytes]:
        if self._echo:
            for index in range(self._n):
                yield self._chunk(index, self._echo)

    def piece(self, choice: int, chunk: Chunk) -> Iterable[bytes]:
        if chunk.text or chunk.logprobs:
            probabilities = _logprobs(chunk.logprobs, self._written[choice])
            self._written[choice] += sum(len(each.text) for each in chunk.logprobs or ())
            yield self._chunk(choice, chunk.text, probabilities)

    def end(self, choice: int, result: Result) -> Iterable[bytes]:
        yield self._chunk(choice, "", finish=openai_forms.finish(result))

    def close(self, results: Sequence[Result]) -> Iterable[bytes]:
        if self._usage:
            timings = results[0].timings.to_dict()
            yield event({**self._named, "choices": [], "usage": openai_forms.usage(results), "timings": timings})
        yield openai_forms.DONE

    def fault(self, error: EdgepackError) -> Iterable[bytes]:
        yield event(openai_forms.fault(error, status_of(error), _KNOWN))

    def alive(self) -> Iterable[bytes]:
        yield openai_forms.ALIVE

    def _chunk(self, index: int, text: str, logprobs: dict[str, Any] | None = None, finish: str | None = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        more = {"usage": None} if self._usage else {}
        return event({**self._named, "choices": [choice], **more})


def _named(asked: Asked, head: Head) -> dict[str, Any]:
    return {
        "id": f"cmpl-{head.id}",
        "object": "text_completion",
        "created": head.created,
        "model": asked.model,
        "system_fingerprint": head.fingerprint,
    }


def _logprobs(tokens: Sequence[TokenLogprob] | None, at: int = 0) -> dict[str, Any] | None:
    """Return logprobs in the older form: lists beside each other; ``at`` is how much was written before."""
    if tokens is None:
        return None
    offsets = []
    for each in tokens:
        offsets.append(at)
        at += len(each.text)
    return {
        "tokens": [each.text for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": [{best.text: best.logprob for best in each.best} for each in tokens],
        "text_offset": offsets,
    }
