"""The command line: what it prints where, its exit codes, and that no fault leaves as a traceback."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_bundle

from edgepack import FakeRuntime, runtime
from edgepack.cli import main
from edgepack.device.hardware import Hardware
from edgepack.errors import EngineMissingError
from edgepack.fake import FakeSession
from edgepack.isolation import isolate, probing, process
from edgepack.runtime import Runtime, Support
from edgepack.text.tokenizer import Tokenizer

ALPHABET = Tokenizer.from_json(small_bundle.tokenizer_json(), None, False)
ANSWER = [*ALPHABET.encode("Hello!"), 257]


class Absent(FakeRuntime):
    """A runtime whose engine is not installed."""

    name = "gguf"

    def probe(self, hardware: Hardware) -> Support:
        return Support((), reason="The engine is not installed.", install="pip install 'edgepack[gguf]'")


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put other runtimes in the place of the installed ones."""

    def put(**runtimes: Runtime) -> None:
        def find(name: str) -> Runtime:
            if name not in runtimes:
                raise EngineMissingError(f"No runtime is called {name!r}.")
            return runtimes[name]

        monkeypatch.setattr(runtime, "names", lambda: sorted(runtimes))
        monkeypatch.setattr(runtime, "find", find)
        # A child process would find the installed ones.
        monkeypatch.setattr(probing, "probe", lambda name, hardware, **asked: probing.ask(name, find, hardware))
        monkeypatch.setattr(isolate, "IsolatedRuntime", find)
        monkeypatch.setattr(process, "can_start", lambda: False)

    put(fake=FakeRuntime(ANSWER))
    return put


@pytest.fixture
def bundle(tmp_path: Path, register: Callable[..., None]) -> str:
    return str(small_bundle.write(tmp_path / "small"))


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


Invoke = Callable[..., tuple[int, str, str]]


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgepack", *arguments], capture_output=True, text=True, **options)


def test_help_names_every_command(invoke: Invoke) -> None:
    code, out, err = invoke("--help")
    assert (code, err) == (0, "")
    for name in ("build", "demo", "run", "inspect", "verify", "plan", "bench", "doctor"):
        assert name in out
    assert invoke() == (code, out, err)


def test_version(invoke: Invoke) -> None:
    from importlib.metadata import version

    for option in ("--version", "-V"):
        assert invoke(option) == (0, f"edgepack {version('edgepack')}\n", "")


# Faults: one sentence on standard error, an exit code


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("frobnicate",), "frobnicate"),
        (("inspect",), "BUNDLE"),
        (("inspect", "x", "--frobnicate"), "--frobnicate"),
        (("run", "x", "hi", "--seed", "many"), "--seed"),
        (("bench", "x", "--repeats", "0"), "--repeats"),
    ],
)
def test_a_command_that_makes_no_sense_ends_with_2(invoke: Invoke, arguments: tuple[str, ...], named: str) -> None:
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert named in err
    assert "hint: See: edgepack" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--backend", "tensorrt"), "tensorrt"),
        (("--variant", "fake-q2"), "fake-q2"),
        (("--kv-cache", "q7"), "q7"),
        (("--context", "0"), "context"),
    ],
)
@pytest.mark.parametrize("name", ["plan", "bench", "run"])
def test_an_option_that_cannot_be_honoured_ends_with_2(
    invoke: Invoke, bundle: str, name: str, arguments: tuple[str, ...], named: str
) -> None:
    prompt = ("hi",) if name == "run" else ()
    code, out, err = invoke(name, bundle, *prompt, *arguments)
    assert (code, out) == (2, "")
    assert named in err


@pytest.mark.parametrize("option", ["--temperature=-1", "--top-p=0", "--max-tokens=0", "--min-p=2"])
def test_a_sampling_option_out_of_range_ends_with_2(invoke: Invoke, bundle: str, option: str) -> None:
    code, _, err = invoke("run", bundle, "hi", option)
    assert code == 2
    assert option.split("=")[0] in err


@pytest.mark.parametrize("name", ["inspect", "verify", "plan", "bench", "run"])
def test_what_is_no_bundle_ends_with_1(invoke: Invoke, tmp_path: Path, name: str) -> None:
    prompt = ("hi",) if name == "run" else ()
    for path in (tmp_path / "nowhere", tmp_path):
        code, out, err = invoke(name, str(path), *prompt)
        assert (code, out) == (1, "")
        assert str(path) in err


def test_a_flipped_byte_ends_with_1_and_is_named(invoke: Invoke, bundle: str) -> None:
    weights = Path(bundle, "variants/fake-q4/model.bin")
    weights.write_bytes(b"weightz")
    for arguments in (("verify", bundle), ("run", bundle, "hi"), ("bench", bundle)):
        code, out, err = invoke(*arguments)
        assert (code, out) == (1, "")
        assert "variants/fake-q4/model.bin" in err
        assert "sha256" in err


def test_a_corrupt_manifest_ends_with_1(invoke: Invoke, bundle: str) -> None:
    Path(bundle, "manifest.json").write_text("{")
    code, _, err = invoke("inspect", bundle)
    assert code == 1
    assert err.count("\n") == 2
    assert "manifest.json" in err


def test_a_newer_bundle_asks_for_an_upgrade(invoke: Invoke, bundle: str) -> None:
    path = Path(bundle, "manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": {"version": 7, "features": []}}))
    code, _, err = invoke("run", bundle, "hi")
    assert code == 1
    assert "pip install -U edgepack" in err


def test_a_missing_engine_says_what_to_install(invoke: Invoke, register: Callable[..., None], tmp_path: Path) -> None:
    path = str(small_bundle.write(tmp_path / "gguf", [small_bundle.variant("gguf-q4")]))
    register(gguf=Absent())
    code, out, err = invoke("run", path, "hi")
    assert (code, out) == (1, "")
    assert "hint: Install it with: pip install 'edgepack[gguf]'" in err
    code, out, err = invoke("plan", path)
    assert code == 1
    assert "gguf-q4" in out
    assert "The engine is not installed" in err


def test_a_context_beyond_the_verified_one_names_the_limit(invoke: Invoke, bundle: str) -> None:
    code, _, err = invoke("run", bundle, "hi", "--context", "9000")
    assert code == 1
    assert "8192" in err


def test_a_prompt_that_does_not_fit_is_not_cut(invoke: Invoke, bundle: str) -> None:
    code, out, err = invoke("run", bundle, "x" * 50, "--raw", "--context", "40")
    assert (code, out) == (1, "")
    assert "50 tokens" in err


def test_a_fault_of_our_own_is_one_sentence(
    invoke: Invoke, bundle: str, register: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(session: FakeSession) -> None:
        raise ZeroDivisionError("a planned fault")

    register(fake=FakeRuntime(before_step=fail))
    code, _, err = invoke("run", bundle, "hi")
    assert code == 1
    assert err.startswith("error: internal error: ZeroDivisionError: a planned fault\nhint: ")
    assert "EDGEPACK_DEBUG=1" in err
    monkeypatch.setenv("EDGEPACK_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["run", bundle, "hi"])


def test_no_traceback_reaches_the_user(tmp_path: Path) -> None:
    ended = command("inspect", str(tmp_path))
    assert ended.returncode == 1
    assert (
        ended.stderr
        == f"error: {tmp_path} is not a bundle: it has no manifest.json.\nhint: Make one with: edgepack build\n"
    )
    assert command("inspect").returncode == 2


def test_a_reader_that_leaves_is_no_noise(tmp_path: Path) -> None:
    path = small_bundle.write(tmp_path / "small")
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "edgepack", "inspect", str(path)], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    path = small_bundle.write(tmp_path / "small")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "edgepack", "inspect", "--json", str(path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 1
    assert ended.stderr == "error: The system refused: No space left on device.\n"


# Reports


def json_of(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


def test_inspect_tells_what_quantisation_cost_and_warns_where_it_is_much(invoke: Invoke, tmp_path: Path) -> None:
    figures = {"tokens": 160, "kl_error": 0.04, "top1": 0.7, "top1_error": 0.03}
    figures |= {"perplexity": 1.2, "perplexity_error": 0.05}
    variants = []
    for name, kl in (("fake-q4", 0.31), ("fake-q8", 0.002)):
        variant = small_bundle.variant(name)
        variants.append(variant | {"proof": variant["proof"] | {"loss": {"text": figures | {"kl": kl}}}})
    code, out, _ = invoke("inspect", str(small_bundle.write(tmp_path / "two", variants)))
    assert code == 0
    lost = [line for line in out.splitlines() if re.search(r"fake-q\d +text ", line)]
    assert len(lost) == 2
    assert "\nLost on 160 tokens of text.\n" in out
    for figure in ("0.310 ± 0.040", "70.0% ± 3.0%", "x 1.200 ± 0.050"):
        assert figure in lost[0]
    assert [line for line in out.splitlines() if "answers" in line] == [
        "fake-q4 lost 0.31 nats on text, which shows in its answers. More bits lose less."
    ]
    assert "no gain" not in out


@pytest.mark.parametrize("ratio", [0.97, 0.6])
def test_inspect_calls_no_perplexity_a_gain(invoke: Invoke, tmp_path: Path, ratio: float) -> None:
    figures = {"tokens": 160, "kl": 0.01, "kl_error": 0.04, "top1": 0.7, "top1_error": 0.03}
    loss = {"text": figures | {"perplexity": ratio, "perplexity_error": 0.05}}
    variant = small_bundle.variant("fake-q4")
    path = small_bundle.write(tmp_path / "one", [variant | {"proof": variant["proof"] | {"loss": loss}}])
    code, out, _ = invoke("inspect", str(path))
    assert code == 0
    assert f"x {ratio:.3f} ± 0.050" in out
    assert "A perplexity of less than x 1 is luck with the text, no gain" in out


def test_inspect(invoke: Invoke, tmp_path: Path, register: Callable[..., None]) -> None:
    failing = {"engine": "fake 1", "tokens": 9, "gates": [{"name": "kl", "value": 0.5, "limit": 0.1, "holds": "<="}]}
    variants = [
        small_bundle.variant("fake-q4"),
        small_bundle.variant("fake-q8", proof=None),
        small_bundle.variant("fake-q2", proof=failing),
    ]
    path = str(small_bundle.write(tmp_path / "three", variants))
    code, out, _ = invoke("inspect", path)
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for text in (
        "MIT (LICENSE)",
        "LlamaForCausalLM",
        "8192 trained, 8192 packed for, 8192 verified",
        "user, assistant",
    ):
        assert text in out
    assert "UNPROVEN" in lines["fake-q8"]
    assert "FAILS" in lines["fake-q2"]
    report = json_of(invoke("inspect", path, "--json"))
    assert [variant["proven"] for variant in report["variants"]] == [True, False, True]
    assert report["name"] == "small"
    assert len(report["id"]) == 64


def test_inspect_tells_fallbacks_by_kind(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, odd = "rows of 576 are not a multiple of 256", "rows of 100 are not a multiple of 32"
    taken = [(f"layers.{layer}.{kind}", "q5_0", narrow) for layer in range(30) for kind in ("attention.q", "mlp.up")]
    taken += [(f"layers.{layer}.attention.v", "q5_0", narrow) for layer in (0, 1, 5, 28, 29)]
    taken += [("embedding", "q8_0", narrow), ("layers.7.mlp.down", "f16", odd)]
    fallbacks = [dict(zip(("tensor", "scheme", "reason"), each, strict=True)) for each in taken]
    quantization = small_bundle.variant("fake-q4")["quantization"] | {"fallbacks": fallbacks}
    path = str(small_bundle.write(tmp_path / "deep", [small_bundle.variant("fake-q4", quantization=quantization)]))
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = invoke("inspect", path)
    assert code == 0
    told = " ".join(out.split())
    for sentence in (
        f"65 tensors are q5_0, because {narrow}: attention.q, mlp.up in layers 0-29; "
        "attention.v in layers 0-1, 5, 28-29",
        f"1 tensor is q8_0, because {narrow}: embedding",
        f"1 tensor is f16, because {odd}: mlp.down in layer 7",
    ):
        assert told.count(sentence) == 1
    assert max(map(len, out.splitlines())) <= 80
    assert len(out.splitlines()) < 30
    report = json_of(invoke("inspect", path, "--json"))
    assert report["variants"][0]["quantization"]["fallbacks"] == fallbacks


def test_plan(invoke: Invoke, bundle: str) -> None:
    code, out, err = invoke("plan", bundle)
    assert (code, err) == (0, "")
    assert "context 4096 of 8192 (verified)" in out
    assert "chosen: fake on cpu, 4.50 bits a weight" in out
    report = json_of(invoke("plan", bundle, "--json", "--context", "100"))
    (candidate,) = report["candidates"]
    assert report["context"] == 100
    assert candidate["eligible"] is True
    memory = candidate["memory"]
    assert memory["total"] == sum(memory[part] for part in ("weights", "kv_cache", "overhead", "engine", "loading"))


def test_verify(invoke: Invoke, bundle: str) -> None:
    code, out, err = invoke("verify", bundle)
    assert (code, err) == (0, "")
    assert "sound: 6 files" in out
    report = json_of(invoke("verify", bundle, "--json", "--replay"))
    assert report["files"] == 6
    assert [(each["name"], each["verdict"]) for each in report["replays"]] == [
        ("tokenizer", "same"),
        ("chat template", "same"),
        ("fake-q4", "skipped"),
    ]


def test_verify_names_what_it_passed_over(invoke: Invoke, tmp_path: Path) -> None:
    folder = small_bundle.write(tmp_path / "small")
    (folder / ".DS_Store").touch()
    (folder / "__MACOSX").mkdir()
    code, out, _ = invoke("verify", str(folder))
    assert (code, "not the bundle's: .DS_Store, __MACOSX/" in out) == (0, True)
    assert json_of(invoke("verify", str(folder), "--json"))["foreign"] == [".DS_Store", "__MACOSX/"]


def test_run_and_verify_take_the_pinned_bundle_alone(invoke: Invoke, bundle: str) -> None:
    pin = json_of(invoke("verify", bundle, "--json"))["id"]
    assert invoke("verify", bundle, "--id", f"sha256:{pin}")[0] == 0
    assert invoke("run", bundle, "hi", "--id", pin)[:2] == (0, "Hello!\n")
    for command in (("verify", bundle), ("run", bundle, "hi")):
        code, out, err = invoke(*command, "--id", "sha256:" + "0" * 64)
        assert (code, out) == (1, "")
        assert f"is another bundle: its id is sha256:{pin}" in err


def test_a_replay_that_differs_ends_with_1(invoke: Invoke, tmp_path: Path, register: Callable[..., None]) -> None:
    register(fake=FakeRuntime())
    variant = small_bundle.variant("fake-q4", self_test={"ids": [1, 2, 3], "top1": [0, None, 0]})
    code, out, err = invoke("verify", str(small_bundle.write(tmp_path / "small", [variant])), "--replay")
    assert code == 1
    assert "differs" in out
    assert "fake-q4 does not give here what its bundle records" in err


def test_bench(invoke: Invoke, bundle: str) -> None:
    few = ("--prompt-tokens", "8", "--decode-tokens", "4", "--repeats", "2", "--threads", "1")
    code, out, err = invoke("bench", bundle, *few)
    assert (code, err) == (0, "")
    for name in ("load", "time to first token", "prefill", "decode", "p50", "p95", "peak memory", "roofline"):
        assert name in out
    assert "  fake 1 on cpu, 1 thread(s)" in out
    report = json_of(invoke("bench", bundle, *few, "--json"))
    assert report["prompt_tokens"] == 8
    assert set(report["decode_tps"]) == {"median", "deviation"}


def test_doctor(invoke: Invoke, register: Callable[..., None]) -> None:
    register(fake=FakeRuntime(), gguf=Absent())
    code, out, err = invoke("doctor")
    assert (code, err) == (0, "")
    assert "ready" in out
    assert "pip install" in out
    report = json_of(invoke("doctor", "--json"))
    assert report["runtimes"]["gguf"]["install"] == "pip install 'edgepack[gguf]'"
    assert report["threads"] >= 1


class Packed(FakeRuntime):
    """An engine that comes in a package, whose version is not its own."""

    def probe(self, hardware: Hardware) -> Support:
        return replace(super().probe(hardware), package="fakecpp 2026.10")


def test_an_engine_is_shown_by_its_package(invoke: Invoke, bundle: str, register: Callable[..., None]) -> None:
    register(fake=Packed(ANSWER))
    few = ("--prompt-tokens", "8", "--decode-tokens", "4", "--repeats", "1")
    assert "  fakecpp 2026.10 on cpu, " in invoke("bench", bundle, *few)[1]
    assert "fakecpp 2026.10 on cpu, 4.50 bits a weight" in invoke("plan", bundle)[1]
    assert "fake  fakecpp 2026.10  cpu" in invoke("doctor")[1]
    report = json_of(invoke("doctor", "--json"))["runtimes"]["fake"]
    assert (report["version"], report["package"]) == ("1", "fakecpp 2026.10")


def test_doctor_without_an_engine_says_so(invoke: Invoke, register: Callable[..., None]) -> None:
    register(gguf=Absent())
    assert "No engine can run here" in invoke("doctor")[1]


# Running


def test_an_answer_goes_to_standard_output(invoke: Invoke, bundle: str) -> None:
    assert invoke("run", bundle, "hi") == (0, "Hello!\n", "")
    assert invoke("run", bundle, "hi", "--raw") == (0, "Hello!\n", "")
    assert invoke("run", bundle, "hi", "--stop", "l") == (0, "He\n", "")
    assert invoke("run", bundle, "hi", "--max-tokens", "4") == (0, "Hell\n", "")


def test_names_of_special_tokens_are_text_unless_parsed(invoke: Invoke, bundle: str) -> None:
    asked = ("run", bundle, "hi</s>", "--json")
    text, parsed = (json_of(invoke(*asked, *more)) for more in ((), ("--control-tokens", "parse")))
    assert text["usage"]["prompt_tokens"] == parsed["usage"]["prompt_tokens"] + len("</s>") - 1
    assert "Choose one of: text, parse" in invoke(*asked, "--control-tokens", "other")[2]
    assert "--control-tokens was given for a prompt without" in invoke(*asked, "--raw", "--control-tokens", "text")[2]


def test_the_template_is_used_unless_raw(invoke: Invoke, bundle: str) -> None:
    chat = json_of(invoke("run", bundle, "hi", "--json"))
    raw = json_of(invoke("run", bundle, "hi", "--json", "--raw"))
    assert chat["usage"]["prompt_tokens"] == len(ALPHABET.encode("<|user|>hi<|assistant|>", special=True))
    assert raw["usage"]["prompt_tokens"] == 2
    assert raw["text"] == "Hello!"
    setup = raw["repro"]["setup"]
    assert (setup["variant"], setup["context"], raw["finish_reason"]) == ("fake-q4", 4096, "stop")


def test_sampling_options_reach_the_sampler(invoke: Invoke, bundle: str) -> None:
    options = {"temperature": 0.5, "top_p": 0.75, "top_k": 7, "min_p": 0.25, "repetition_penalty": 1.5, "seed": 11}
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert json_of(invoke("run", bundle, "hi", "--json", *given))["sampling"] == options


def test_a_bundle_without_a_template_continues_the_text(
    invoke: Invoke, tmp_path: Path, register: Callable[..., None]
) -> None:
    path = str(small_bundle.write(tmp_path / "plain", chat=None))
    assert json_of(invoke("run", path, "hi", "--json"))["usage"]["prompt_tokens"] == 2


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_prompt_can_be_piped(invoke: Invoke, bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, b"hey\n")
    assert json_of(invoke("run", bundle, "--raw", "--json"))["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff\xfe"])
def test_a_prompt_that_is_none_ends_with_2(
    invoke: Invoke, bundle: str, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    piped(monkeypatch, data)
    code, out, err = invoke("run", bundle)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


def interrupt_at(step: int) -> Callable[[FakeSession], None]:
    steps = [0]

    def before_step(session: FakeSession) -> None:
        steps[0] += 1
        if steps[0] == step:
            os.kill(os.getpid(), signal.SIGINT)
            assert session._cancelled.wait(30)  # the main thread handles it, while this one is inside the engine

    return before_step


def test_an_interrupt_keeps_what_was_said_and_ends_with_130(
    invoke: Invoke, bundle: str, register: Callable[..., None]
) -> None:
    # The first step is the prompt, each later one a token of the answer.
    register(fake=FakeRuntime(ANSWER, before_step=interrupt_at(4)))
    before = signal.getsignal(signal.SIGINT)
    assert invoke("run", bundle, "hi") == (130, "Hel\n", "")
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_while_loading_ends_with_130(invoke: Invoke, bundle: str, register: Callable[..., None]) -> None:
    class Interrupted(FakeRuntime):
        def open(self, *arguments: Any) -> Any:
            raise KeyboardInterrupt

    register(fake=Interrupted())
    assert invoke("run", bundle, "hi") == (130, "", "")


CONVERSATION = """
import sys
sys.path[:0] = {places!r}
import test_cli
from edgepack import FakeRuntime, runtime
from edgepack.isolation import probing
fake = FakeRuntime(test_cli.ANSWER, before_step=test_cli.interrupt_at({step}))
runtime.names = lambda: ["fake"]
runtime.find = lambda name: fake
probing.probe = lambda name, hardware, **asked: fake.probe(hardware)
sys.exit(test_cli.main(["run", {bundle!r}, *{options!r}]))
"""


def converse(bundle: str, typed: Sequence[bytes], *options: str, step: int = 0) -> tuple[int, str]:
    """Run a chat on a terminal of its own, typing at each prompt; return its exit code and what the terminal showed."""
    here = Path(__file__)
    places = [str(here.parent), str(here.parents[2])]  # its own, and what the tests share
    code = CONVERSATION.format(places=places, bundle=bundle, options=options, step=step)
    terminal, inside = pty.openpty()
    environment = os.environ | {"TERM": "dumb", "NO_COLOR": "1"}
    pending, shown = list(typed), b""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=environment,
        start_new_session=True,
    ) as chat:
        os.close(inside)
        while True:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # Linux says so when the other side is closed
                break
            if not data:
                break
            shown += data
            if shown.endswith(b"> ") and pending:
                os.write(terminal, pending.pop(0))
    os.close(terminal)
    return chat.returncode, shown.decode().replace("\r\n", "\n")


def test_a_chat_remembers_until_it_is_cleared(bundle: str) -> None:
    code, shown = converse(bundle, [b"one\n", b"\n", b"/clear\n", b"two\n", b"\x04"])
    assert code == 0
    assert shown.count("Hello!") == 2
    assert "fake-q4, context 4096" in shown


def test_a_chat_outlives_an_interrupted_answer(bundle: str) -> None:
    code, shown = converse(bundle, [b"one\n", b"two\n", b"\x04"], step=4)
    assert code == 0
    assert "Hel\n" in shown
    assert shown.count("Hello!") == 1


def test_a_chat_outlives_a_conversation_that_is_too_long(bundle: str) -> None:
    code, shown = converse(bundle, [b"one\n", b"x" * 60 + b"\n", b"/clear\n", b"two\n", b"\x04"], "--context", "40")
    assert code == 0
    assert "error: The prompt has" in shown
    assert shown.count("Hello!") == 2


def test_json_needs_a_prompt(bundle: str) -> None:
    code, shown = converse(bundle, [], "--json")
    assert code == 2
    assert "--json needs a prompt" in shown


def test_doctor_names_what_packing_lacks_before_it_names_the_demo(
    invoke: Invoke, register: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack.extras.missing", lambda extra: ["gguf", "numba"] if extra == "build" else [])
    said = invoke("doctor")[1]
    assert "packing, which an application does without: gguf, numba not installed." in said
    assert "   pip install 'edgepack[build]'" in said
    assert json_of(invoke("doctor", "--json"))["unpacked"] == ["gguf", "numba"]
