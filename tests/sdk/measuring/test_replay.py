"""A bundle's text vectors, replayed: what differs is named, and a device does it once."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small_bundle

import edgepack
from edgepack import FakeRuntime, first_open
from edgepack.bundle.files import Bundle
from edgepack.decoding import repro
from edgepack.device.state import state_folder
from edgepack.errors import ReplayError, UsageError
from edgepack.text.opening import text_side
from edgepack.text.replay import Replay, replay_text
from edgepack.text.tokenizer import Tokenizer

ALPHABET = Tokenizer.from_json(small_bundle.tokenizer_json(), None, False)
PROMPT = "<|user|>hi<|assistant|>"
USER = [{"role": "user", "content": "hi"}]
RUNTIMES = {"fake": FakeRuntime()}


def golden(**changes: Any) -> dict[str, Any]:
    plain = {"name": "user", "messages": USER, "text": PROMPT, "ids": ALPHABET.encode(PROMPT, special=True)}
    return plain | changes


def bundle_of(
    folder: Path, goldens: Sequence[dict[str, Any]] = (), probes: Sequence[dict[str, Any]] = (), date: Any = None
) -> Bundle:
    facts = {"rows": 260, "bos": 256, "add_bos": False, "probes": list(probes)}
    chat = {"roles": ["user"], "date": date, "goldens": list(goldens)}
    producer = {"edgepack": "0.1.0", "packages": {"jinja2": "3.1.6", "tokenizers": "0.21.0"}, "recipe": {}}
    return edgepack.open_bundle(small_bundle.write(folder, tokenizer=facts, chat=chat, producer=producer))


def replayed(bundle: Bundle) -> list[Replay]:
    return replay_text(bundle.manifest, *text_side(bundle))


def test_the_same_is_the_same(tmp_path: Path) -> None:
    probes: list[dict[str, Any]] = [
        {"text": "<s>", "ids": ALPHABET.encode("<s>")},
        {"text": "<s>", "special": True, "ids": [256]},
    ]
    found = replayed(bundle_of(tmp_path, [golden()], probes))
    assert [(each.name, each.verdict, each.checked) for each in found] == [
        ("tokenizer", "same", 2),
        ("chat template", "same", 1),
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": PROMPT + " "}, "'user' is rendered as '' instead of ' ' at index 23"),
        ({"text": PROMPT.replace("hi", "ho")}, "'user' is rendered as 'i<|assis' instead of 'o<|assis' at index 9"),
        ({"ids": [258, 0]}, "'user' gives [71, 72, 259] instead of [0] at index 1"),
        ({"add_generation_prompt": True, "messages": [{"role": "user"}]}, r"'user': messages[0].content is missing."),
        ({"tools": [{"name": "f"}]}, "'user': This bundle's chat template knows no tools."),
        ({"text": "", "ids": [], "refusal": "No."}, "'user' is rendered, and was refused: No."),
    ],
)
def test_a_golden_that_differs_is_named(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    chat = replayed(bundle_of(tmp_path, [golden(**changes), golden()]))[1]
    assert (chat.verdict, chat.checked, chat.reason) == ("differs", 2, reason)


def test_several_differences_are_counted(tmp_path: Path) -> None:
    probes: list[dict[str, Any]] = [
        {"text": "ab", "ids": [1, 2]},
        {"text": "cd", "ids": ALPHABET.encode("cd")},
        {"text": "ef", "ids": []},
    ]
    found = replayed(bundle_of(tmp_path, probes=probes))[0]
    first = ALPHABET.encode("ab")
    assert found.reason == f"'ab' gives {first} instead of [1, 2] at index 0, and 1 more"


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda source: monkeypatch.setattr(small_bundle, "TEMPLATE", source)


def test_a_refusal_is_replayed_by_its_words(template: Any, tmp_path: Path) -> None:
    template("{{ raise_exception('No system.') }}")
    words = "The chat template refuses the messages: No system."
    assert replayed(bundle_of(tmp_path / "a", [golden(text="", ids=[], refusal=words)]))[1].verdict == "same"
    other = replayed(bundle_of(tmp_path / "b", [golden(text="", ids=[], refusal="No user.")]))[1]
    assert other.reason == f"'user': {words}"


def test_a_failure_is_replayed_whatever_its_words(template: Any, tmp_path: Path) -> None:
    template("{{ messages[7].content.text }}")
    assert replayed(bundle_of(tmp_path / "a", [golden(text="", ids=[], refusal="In other words.")]))[1].reason == ""
    assert "fails on these messages" in replayed(bundle_of(tmp_path / "b", [golden()]))[1].reason


@pytest.mark.parametrize("policy", ["pinned", "passed"])
def test_goldens_are_of_their_day(policy: str, template: Any, tmp_path: Path) -> None:
    template("{{ strftime_now('%d %b') }}")
    date = {"policy": policy, "day": "2024-07-26"}
    text = "26 Jul"
    bundle = bundle_of(tmp_path, [golden(text=text, ids=ALPHABET.encode(text))], date=date)
    assert replayed(bundle)[1].verdict == "same"
    with edgepack.load(bundle, runtimes=RUNTIMES) as model:
        if policy == "passed":
            with pytest.raises(UsageError, match=r"prints the day.*date='YYYY-MM-DD'"):
                model.chat(USER)
        else:
            model.chat(USER, max_tokens=1)
        model.chat(USER, date="2031-12-01", max_tokens=1)


def test_a_plain_text_gets_bos_and_a_prompt_only_the_templates_own(tmp_path: Path) -> None:
    facts = {"rows": 260, "bos": 256, "add_bos": True, "probes": []}
    with edgepack.load(small_bundle.write(tmp_path / "small", tokenizer=facts), runtimes=RUNTIMES) as model:
        assert model.tokenize("hi") == [256, *ALPHABET.encode("hi")]
        assert model.chat(USER, max_tokens=1).usage.prompt_tokens == len(ALPHABET.encode(PROMPT, special=True))


def test_tools_and_variables_reach_the_template(template: Any, tmp_path: Path) -> None:
    form = """{# <tool_call> {"name": "f", "arguments": {}} </tool_call> #}"""
    template(form + "{{ tools|length if tools else 'none' }} {{ enable_thinking|default(true) }}")
    with edgepack.load(bundle_of(tmp_path), runtimes={"fake": FakeRuntime([*ALPHABET.encode("Yes"), 257])}) as model:
        used = model.chat(USER, tools=[{"name": "f"}], variables={"enable_thinking": False}).usage.prompt_tokens
        assert (used, model.chat(USER).usage.prompt_tokens) == (len("1 False"), len("none True"))
        with pytest.raises(UsageError, match="no variable 'thinking'"):
            model.chat(USER, variables={"thinking": False})


def test_a_token_without_a_row_never_reaches_the_engine(tmp_path: Path) -> None:
    plain = small_bundle.manifest([])["decoder"]
    folder = small_bundle.write(tmp_path / "small", decoder=plain | {"n_vocab": 259})
    with (
        edgepack.load(folder, runtimes=RUNTIMES) as model,
        pytest.raises(UsageError, match=r"the token '<\|assistant\|>', which this model lacks"),
    ):
        model.chat(USER)


# The first opening


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bundles that were replayed, by name."""
    names: list[str] = []

    def counted(manifest: Any, *text: Any) -> list[Replay]:
        names.append(manifest.name)
        return replay_text(manifest, *text)

    monkeypatch.setattr(first_open, "replay_text", counted)
    return names


def test_a_bundle_is_replayed_once_on_a_device(state: Path, replays: list[str], tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", [golden()])
    for _ in range(3):
        edgepack.load(bundle, runtimes=RUNTIMES).close()
    assert len(replays) == 1
    assert [mark.name for mark in (state / "replayed").iterdir()] == [bundle.id]


def test_another_library_replays_again(
    state: Path, replays: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path / "bundle", [golden()])
    edgepack.load(bundle, runtimes=RUNTIMES).close()
    monkeypatch.setattr(repro, "version", lambda name: "99")
    edgepack.load(bundle, runtimes=RUNTIMES).close()
    edgepack.load(bundle, runtimes=RUNTIMES).close()
    assert len(replays) == 2


def test_a_device_that_gives_something_else_refuses_the_bundle(state: Path, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", [golden(ids=[1])])
    for _ in range(2):
        with pytest.raises(ReplayError) as caught:
            edgepack.load(bundle, runtimes=RUNTIMES)
        assert "The chat template of bundle does not give what it gave" in str(caught.value)
        assert "'user' gives [258, 71, 72, 259] instead of [1] at index 0" in str(caught.value)
        assert "Install what it was built with: jinja2 3.1.6, tokenizers 0.21.0." in str(caught.value)
    assert not state.exists()


def test_a_device_that_cannot_remember_replays_each_time(
    replays: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file, where a folder should be")
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    bundle = bundle_of(tmp_path / "bundle", [golden()])
    edgepack.load(bundle, runtimes=RUNTIMES).close()
    edgepack.load(bundle, runtimes=RUNTIMES).close()
    assert len(replays) == 2


@pytest.mark.parametrize(
    ("system", "environment", "place"),
    [
        ("Linux", {}, "/home/me/.local/state/edgepack"),
        ("Linux", {"XDG_STATE_HOME": "/state"}, "/state/edgepack"),
        ("Darwin", {}, "/home/me/Library/Application Support/edgepack"),
        ("Windows", {"LOCALAPPDATA": "/local"}, "/local/edgepack"),
        ("Linux", {"EDGEPACK_STATE": "/mine", "XDG_STATE_HOME": "/state"}, "/mine"),
    ],
)
def test_the_state_folder_is_the_systems(
    system: str, environment: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EDGEPACK_STATE", "XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(platform, "system", lambda: system)
    assert state_folder() == Path(place)
