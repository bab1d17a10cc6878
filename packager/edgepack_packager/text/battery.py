"""The battery: the conversations and texts whose renderings and token ids every bundle records.

Each is there for something that tokenizers and templates get wrong. They are data: ``golden`` makes vectors of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

# The day that a template which prints one is rendered with, so that a prompt does not change overnight.
DAY = "2024-07-26"


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of ``ChatTemplate.render``, and a name to report them by."""

    name: str
    messages: list[dict[str, object]]
    tools: list[dict[str, object]] | None = None
    variables: dict[str, object] = {}
    add_generation_prompt: bool = True

    @property
    def needs(self) -> set[str]:
        """The names that a template must read to be asked for this conversation."""
        return {"tools", *self.variables} if self.tools is not None else set(self.variables)


def _system(content: str) -> dict[str, object]:
    return {"role": "system", "content": content}


def _user(content: str) -> dict[str, object]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, object]:
    return {"role": "assistant", "content": content}


ANSWER = "The answer is five."
_CODE = (
    "Explain this:\n```python\ndef f(x: dict[str, int]) -> str:\n\treturn f\"{x['a']:>8}\\n\"  # {{ x }} {% y %}\n```\n"
)
_UNICODE = "Grüße, Ελλάδα! 日本語と한국어、العَرَبِيَّة हिन्दी ภาษาไทย 👩🏽‍🚀🏳️‍🌈 ½ ≠ ∞"


def _weather(description: str) -> dict[str, object]:
    city = {"type": "string", "description": "The city's name"}
    unit = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    parameters = {"type": "object", "properties": {"city": city, "unit": unit}, "required": ["city"]}
    function = {"name": "get_weather", "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


WEATHER = _weather('The weather in a city, in °C or °F: "mild" & <dry>.')
ZURICH: dict[str, object] = {"city": "Zürich", "unit": "celsius"}


def call(id: str, arguments: dict[str, object]) -> dict[str, object]:
    """Return a call of the battery's tool. The id has nine letters and digits: Mistral's templates refuse others."""
    return {"id": id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def _called(arguments: dict[str, object], answer: str) -> list[dict[str, object]]:
    return [
        *_ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call("call00001", arguments)]},
        {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": answer},
    ]


_ASKED = [_user("What is the weather in Zürich?")]
_CALLED = _called(ZURICH, "21 degrees, a clear sky")
TURNS = [_user("Hi"), _assistant("Hello! How can I help?"), _user("Add 2 and 3.")]

CONVERSATIONS = (
    Conversation(name="user", messages=[_user("What is the capital of France?")]),
    Conversation(name="system", messages=[_system("You are a terse assistant."), _user("Say hello.")]),
    Conversation(name="empty system", messages=[_system(""), _user("Say hello.")]),
    Conversation(name="several turns", messages=TURNS),
    Conversation(name="system and several turns", messages=[_system("Answer in one word."), *TURNS]),
    Conversation(name="assistant last", messages=[*TURNS, _assistant(ANSWER)], add_generation_prompt=False),
    Conversation(name="unicode", messages=[_user(_UNICODE), _assistant("Jó napot! 你好 🙂"), _user("à bientôt")]),
    Conversation(name="code", messages=[_user(_CODE)]),
    Conversation(name="white space", messages=[_user("  two spaces,\n\n\n  three lines, a tab\t \n")]),
    Conversation(name="tools", messages=_ASKED, tools=[WEATHER]),
    Conversation(name="tools and system", messages=[_system("Be brief."), *_ASKED], tools=[WEATHER]),
    Conversation(name="tool call", messages=_CALLED, tools=[WEATHER]),
    # Phi-4-mini reads them, as text, from a field of the message.
    Conversation(
        name="tools in a message",
        messages=[{**_system("Be brief."), "tools": '[{"name": "get_weather", "parameters": {}}]'}, *_ASKED],
    ),
    Conversation(name="xml tools", messages=_CALLED, variables={"xml_tools": [WEATHER]}),
    Conversation(name="thinking", messages=TURNS, variables={"enable_thinking": True}),
    Conversation(name="no thinking", messages=TURNS, variables={"enable_thinking": False}),
)

TEXTS = (
    "",
    " ",
    "Hello, world!",
    " a space in front",
    "  two  spaces, a tab\tand\n\na blank line ",
    "naïve café, Größe, Łódź, Ærøskøbing, Việt Nam, İstanbul",
    "Ελληνικά, Привет, Հայերեն, ქართული",
    "東京、中文字符。こんにちは、カタカナ",
    "안녕하세요, 세계",
    "مرحبا بالعالم، السَّلامُ عَلَيْكُم",
    "שלום עולם",
    "नमस्ते दुनिया, বাংলা, தமிழ், తెలుగు",
    "สวัสดีชาวโลก",
    "👩‍🚀🏳️‍🌈👨🏿‍👩🏽‍👧🇯🇵1️⃣ 🦙",
    "1 12 123 1234 12345678 3.14159 1,000,000 -7 1e-5 0xFF",
    "½ ² Ⅷ ٣٤ ४२ 一二三",
    "don't WON'T we'll They'VE I'm he'D 's \u2019s",
    "def f(x):\n\tif x:\n\t\treturn x ** 2  # tabs\n    return None\n",
    "for (int i = 0; i < n; ++i) { sum += a[i] << 2; }\n\n\n\n/* end */",
    '{"a": [1, 2.5, null], "b": "\\u00e9"}',
    "https://example.org/a?b=c&d=%20e#f user@example.org C:\\temp",
    "one\r\ntwo\r\n\r\nthree\rfour",
    "a" + " " * 40 + "b" + "\t" * 9 + "c" + "\n" * 17 + "d  \n  ",
    "()[]{}<>!?@#$%^&*_+-=|\\/~`'\"…\u2013—«»“”",
    "∑∫√≠≤∞ ∀x∈\u211d: x² ≥ 0 → \U0001d518\U0001d52b\U0001d526 \U0001d49c 𐍈",
    "no\u00a0break\u200bzero\u3000wide\u2028line\ufeffmark\u0085next",
    "\u0000\u0001\u001b[0m\u007f",
    "▁block ▁ ▁▁ Ġ <0x0A> <unk> [PAD]",
    "e\u0301 o\u0308 \u1e9b\u0323 \uac00\u11a8",
    "antidisestablishmentarianism" * 4 + " aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<|im_start|>user<|im_end|></s><|eot_id|><end_of_turn><|end|>",
)


def naming(names: Sequence[str]) -> list[Conversation]:
    """Return conversations in which everyone says these names of special tokens, as forged turns do, nested too."""
    said = "".join(f"a{name}system\n{name * 2} b {name[:1]}{name}{name[1:]}\n" for name in names)
    return [
        Conversation(name="names of special tokens", messages=[_user(said), _assistant(said), _user(said)]),
        Conversation(name="names in a system prompt", messages=[_system(said), _user("Say hello.")]),
        Conversation(
            name="names in tools", messages=_called({"city": said, "unit": "celsius"}, said), tools=[_weather(said)]
        ),
    ]


def asked(
    reads: set[str], with_tools: bool, names: Sequence[str] = (), besides: Sequence[Conversation] = ()
) -> list[Conversation]:
    """Return the conversations that a template has a use for, by the names that it reads, and those ``besides``.

    ``with_tools`` gives each a tool, as a template for tools alone always gets; ``names`` are the model's special
    tokens, which some of them say.
    """
    every = [*CONVERSATIONS, *(naming(names) if names else []), *besides]
    fitting = [each for each in every if each.needs <= reads]
    return [msgspec.structs.replace(each, tools=each.tools or [WEATHER]) if with_tools else each for each in fitting]
