"""What an application writes against edgepack, checked as strictly as a type checker can.

``test_typing.py`` has it checked and run. Each line with an ``ignore`` is a mistake that must be found: an
ignore without a mistake is an error itself.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import edgepack
from edgepack import ChatOptions, GenerationOptions, LoadOptions, Messages, Tool, fake

GREEDY: GenerationOptions = {"temperature": 0.0, "max_tokens": 8}
CHAT: ChatOptions = {**GREEDY, "date": None}
CAREFUL: LoadOptions = {"threads": 1, "strict": True, "isolate": False}
ASKED: Messages = [{"role": "user", "content": "Hi"}]


def weather(city: str, days: int = 1) -> str:
    """The weather forecast of a city."""
    return f"{city}: rain for {days} days"


TOOLS: list[Tool] = [weather]


class Reader:
    """An application's own class, which keeps what edgepack gives it."""

    def __init__(self, model: edgepack.Model) -> None:
        self.model = model
        self.chat: edgepack.Conversation = model.chat(system="Be brief.", **CHAT)
        self.last: edgepack.Result | None = None

    def text(self, prompt: str) -> str:
        with self.model.stream(prompt, **GREEDY) as stream:
            joined = "".join(chunk.text for chunk in stream)
        self.last = stream.result
        return joined

    def figures(self) -> tuple[int, float | None, edgepack.FinishReason]:
        assert self.last is not None
        usage: edgepack.Usage = self.last.usage
        timings: edgepack.Timings = self.last.timings
        return usage.prompt_tokens + usage.completion_tokens, timings.decode_tps, self.last.finish_reason

    def say(self, words: str) -> str:
        answer = self.chat.send(words, max_tokens=4)
        calls: list[str] = [f"{call.name}({call.arguments})" for call in answer.tool_calls]
        return " ".join([answer.text, *calls, *map(str, self.chat.fork().messages)])

    def likeliest(self) -> list[tuple[str, float]]:
        wanted: GenerationOptions = {**GREEDY, "n_best": 2}
        found = self.model.generate("Hi", **wanted)
        return [(best.text, best.logprob) for each in found.logprobs or () for best in each.best]


def opened(path: str | os.PathLike[str]) -> edgepack.Model:
    try:
        return edgepack.load(path, "gguf", 2048, **CAREFUL)
    except edgepack.ContextTooLargeError as error:
        raise SystemExit(f"{error.message} {error.hint or ''}") from error


def choices(bundle: edgepack.Bundle) -> dict[str, str | None]:
    plan: edgepack.Plan = edgepack.plan(bundle, turn=edgepack.Turn(prompt=64))
    best: edgepack.Candidate = plan.choice
    needs: int = best.memory.total
    return {each.variant: each.device for each in plan.candidates if each.memory.total <= needs}


async def answered(path: Path) -> edgepack.Result:
    async with await edgepack.aload(path, "gguf", context=2048, **CAREFUL) as model:
        return await streamed(model)


async def streamed(model: edgepack.Model) -> edgepack.Result:
    made: edgepack.AsyncStream = model.astream_chat(ASKED, **CHAT)
    async with made as stream:
        async for chunk in stream:
            print(chunk.text, end="")
    first, second = await asyncio.gather(model.agenerate("Hi", **GREEDY), model.achat(ASKED))
    return first if first.usage.completion_tokens else second


def mistakes(model: edgepack.Model, path: Path) -> None:
    """What must not pass; never called."""
    model.generate("Hi", max_new_tokens=3)  # pyright: ignore[reportCallIssue]
    model.generate("Hi", max_tokens="3")  # pyright: ignore[reportArgumentType]
    model.chat(ASKED).send("Hi")  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    edgepack.load(path, n_ctx=4096)  # pyright: ignore[reportCallIssue]
    edgepack.load(path, threads="all")  # pyright: ignore[reportArgumentType]
    edgepack.aload(path, n_ctx=4096)  # pyright: ignore[reportCallIssue]
    edgepack.aload(path, threads="all")  # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    edgepack.lod(path)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def main() -> None:
    with fake.model(says="Hello!") as model:
        reader = Reader(model)
        print(reader.text("Hi"), reader.say("Who are you?"), *reader.figures(), *reader.likeliest())
        print(asyncio.run(streamed(model)))


if __name__ == "__main__":
    main()
