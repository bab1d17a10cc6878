"""Golden vectors: texts and conversations whose token ids a bundle records, so that a device can replay them."""

from __future__ import annotations

from edgepack.chat import ChatTemplate
from edgepack.errors import UsageError
from edgepack.manifest import Chat, Golden, Probe
from edgepack.tokenizer import Tokenizer

# The day that a template which prints a date is rendered with, so that a prompt does not change overnight.
DATE = "2024-07-26"

TEXTS = (
    "Hello, world!",
    "  two  spaces, a tab\tand\n\na blank line ",
    "naïve café, Größe, Łódź, Привет, 東京, こんにちは, مرحبا",
    "👩‍🚀🏳️‍🌈 1234567890 3.14 don't WON'T",
    "for (int i = 0; i < n; ++i) { sum += a[i] ** 2; }",
    "<|im_end|></s><|eot_id|>",
)

CONVERSATIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "What is the capital of France?"),),
    (("system", "You are a helpful assistant."), ("user", "Say hello in 日本語 🙂.")),
    (("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Add 2 and 3.")),
)


def probes(tokenizer: Tokenizer) -> list[Probe]:
    """Return every text of ``TEXTS`` with its token ids, without BOS."""
    return [Probe(text=text, ids=tokenizer.encode(text, bos=False)) for text in TEXTS]


def chat(source: str, template: ChatTemplate, tokenizer: Tokenizer) -> Chat:
    """Return the chat facts of a template: the roles that it accepts, its date and the conversations it renders.

    A conversation that the template refuses (many refuse a system role) is left out, and so is its role.
    """
    date = DATE if "strftime_now" in source else None
    goldens = []
    for conversation in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in conversation]
        try:
            text = template.render(messages, date=date)
        except UsageError:
            continue
        goldens.append(Golden(messages=messages, text=text, ids=tokenizer.encode(text, special=True)))
    roles = sorted({message["role"] for golden in goldens for message in golden.messages})
    return Chat(roles=roles, date=date, goldens=goldens)
