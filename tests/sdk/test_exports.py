"""The public face: few names, all listed, and an import that costs next to nothing."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints, is_typeddict

import pytest
import small_bundle

import edgepack
from edgepack import FakeRuntime, ToolCall, errors, fake, open_bundle
from edgepack.cli.app import app_for

NAMES = [
    "Alternative",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncStream",
    "Bundle",
    "Candidate",
    "ChatOptions",
    "ChatTemplate",
    "Chunk",
    "Conversation",
    "Dialogue",
    "Draft",
    "FakeRuntime",
    "FinishReason",
    "GenerationOptions",
    "LanguageModel",
    "LoadOptions",
    "Manifest",
    "Memory",
    "Messages",
    "Model",
    "Plan",
    "Repro",
    "Result",
    "Sampling",
    "Score",
    "Seconds",
    "Served",
    "Setup",
    "Stream",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "Tuning",
    "Turn",
    "Usage",
    "Variant",
    "__version__",
    "aconnect",
    "aload",
    "aopen",
    "connect",
    "load",
    "open",
    "open_bundle",
    "plan",
]
ERRORS = [
    name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
]


def test_the_names_are_these() -> None:
    assert sorted(edgepack.__all__) == sorted(NAMES + ERRORS)
    assert dir(edgepack) == sorted(edgepack.__all__)


@pytest.mark.parametrize("name", NAMES + ERRORS)
def test_each_name_is_there(name: str) -> None:
    assert getattr(edgepack, name) is not None


def typing_imports(module: ModuleType) -> dict[str, Any]:
    """What a module imports for its annotations alone."""
    source = inspect.getsource(module)
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(ast.unparse([each for each in node.body if isinstance(each, ast.ImportFrom)]), found)
    return {name: value for name, value in found.items() if name != "__builtins__"}


def test_a_type_checker_sees_each_name_where_it_is() -> None:
    seen = typing_imports(edgepack)
    assert sorted(seen) == sorted(edgepack._HOME)
    assert all(getattr(edgepack, name) is value for name, value in seen.items())


def annotated(thing: Any) -> Iterator[Any]:
    """The annotations of a function, or of a class's fields, public methods and properties; or what a name is for."""
    if not inspect.isclass(thing) and not inspect.isfunction(thing):
        yield thing
        return
    if inspect.isfunction(thing):
        yield from hints(thing)
        return
    if is_dataclass(thing) or is_typeddict(thing):
        yield from hints(thing)
    for name, value in vars(thing).items():
        if name.startswith("_"):
            continue
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isfunction(function):
            yield from hints(function)


def hints(thing: Any) -> Iterator[Any]:
    module = sys.modules[thing.__module__]
    yield from get_type_hints(thing, vars(module) | typing_imports(module)).values()


def named(annotation: Any) -> Iterator[type]:
    """The classes that an annotation names; a kind of text is text to whoever gets it."""
    if inspect.isclass(annotation) and not get_args(annotation) and not issubclass(annotation, str):
        yield annotation
    for part in get_args(annotation):
        for each in part if isinstance(part, list) else [part]:
            yield from named(each)


# What a runtime is made of, and the fields of a manifest: each is one module that is read as a whole.
WHOLE = ("edgepack.runtime", "edgepack.device.engine", "edgepack.device.hardware", "edgepack.bundle")


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"__version__", "Manifest", "Variant", "FakeRuntime"}))
def test_what_a_signature_names_is_there_too(name: str) -> None:
    met = {each for annotation in annotated(getattr(edgepack, name)) for each in named(annotation)}
    ours = {each.__name__ for each in met if each.__module__.startswith("edgepack")}
    deeper = {each.__name__ for each in met if each.__module__.startswith(WHOLE)}
    assert not ours - deeper - set(edgepack.__all__)


def test_a_name_that_is_missing_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edgepack, "__all__", [name for name in edgepack.__all__ if name != "Usage"])
    with pytest.raises(AssertionError):
        test_what_a_signature_names_is_there_too("Result")


def public(thing: object) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


def test_nothing_internal_completes() -> None:
    with fake.model() as model:
        assert public(model) == [
            "achat", "aclose", "aembed", "agenerate", "astream", "astream_chat", "backend", "bundle_id", "chat",
            "close", "context", "count_tokens", "detokenize", "device", "embed", "evaluate", "generate", "logits",
            "manifest", "resume", "score", "setup", "stream", "stream_chat", "template", "tokenize", "tokenizer",
            "variant",
        ]  # fmt: skip
        assert public(model.stream("x")) == ["cancel", "close", "result"]
        assert public(model.astream("x")) == ["cancel", "result"]
        assert public(model.evaluate([1])) == ["cancel", "close"]
        assert public(model.chat()) == [
            "asend", "astream", "fork", "messages", "save", "send", "stream", "turns", "undo"
        ]  # fmt: skip


def test_load_and_aload_have_one_signature() -> None:
    from edgepack.asynchronous import aload
    from edgepack.loading import load

    assert inspect.signature(load) == inspect.signature(aload)


# One line each, whatever a model, a user or a path says.

SECRET = "hf_abcdefghij"


def test_a_model_and_what_it_gives_are_one_helpful_line() -> None:
    with fake.model(says="Hello\n\x1b[31m " + SECRET + " x" * 5_000) as model:
        assert repr(model) == "<Model fake fake-f32: fake on cpu, context 4096, threads 1>"
        result = model.generate("Hi", max_tokens=3000)
        line = r'<Result "Hello\\n\\u001b\[31m hf_\*\*\*[ x]+…", length after 2 \+ 3000 tokens, [\d.]+ tokens/s>'
        assert re.fullmatch(line, repr(result))
        chat = model.chat()
        chat.send(SECRET)
        assert repr(chat) == "<Conversation of 1 turn with fake-f32>"
    assert repr(model).endswith(", out of use>")


def test_a_result_that_calls_tools_names_them() -> None:
    with fake.model(says="Hi") as model:
        result = model.generate("Hi")
    calls = tuple(ToolCall(name, {"city": SECRET}) for name in ("weather", "time"))
    none = replace(result.timings, decode_tps=None)
    told = repr(replace(result, text="", tool_calls=calls, timings=none))
    assert told == '<Result "", calls weather, time, stop after 2 + 3 tokens>'


def test_a_bundle_and_its_plan_are_one_helpful_line(tmp_path: Path) -> None:
    bundle = open_bundle(
        small_bundle.write(tmp_path, [small_bundle.variant("gguf-q4"), small_bundle.variant("fake-q4")])
    )
    assert repr(bundle) == f"<Bundle {bundle.manifest.name} {bundle.id[:12]}: gguf-q4, fake-q4>"
    plan = edgepack.plan(bundle, runtimes={"fake": FakeRuntime()})
    assert repr(plan) == f"<Plan for a context of {plan.context}: 1 of 2 variants can run, fake-q4 on cpu first>"
    able, unable = map(repr, plan.candidates)
    assert able.startswith("<Candidate fake-q4, fake on cpu, can run: fake on cpu, ")
    assert unable == "<Candidate gguf-q4, gguf, cannot run: no runtime called 'gguf' is registered>"
    nothing = edgepack.plan(bundle, runtimes={})
    assert repr(nothing) == f"<Plan for a context of {plan.context}: 0 of 2 variants can run>"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("a b", "a b"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        ("a\tb\u202ec", "a\\tb\\u202ec"),
        ("https://me:pass@host/?token=abc " + SECRET, "https://host/?token=*** hf_***"),
        (" " * 955 + SECRET, " " * 59 + "…"),
    ],
)
def test_brief(text: str, line: str) -> None:
    assert errors.brief(text) == line


def test_the_errors_are_one_tree() -> None:
    assert len(ERRORS) >= 17
    for name in ERRORS:
        assert issubclass(getattr(edgepack, name), edgepack.EdgepackError)
        assert name in (errors.__doc__ or "")


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="lod"):
        edgepack.lod  # type: ignore[attr-defined]  # noqa: B018


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {
    "httpx",
    "numpy",
    "tokenizers",
    "typer",
    "rich",
    "jinja2",
    "msgspec",
    "onnxruntime",
    "mlx",
    "mlx_lm",
    "onnx",
    "gguf",
}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not loaded_after("import edgepack") & HEAVY


def test_the_command_line_imports_only_itself() -> None:
    statement = "import io, sys; sys.stdout = io.StringIO()\nfrom edgepack.cli import main; main(['--help'])\n"
    loaded = loaded_after(statement + "sys.stdout = sys.__stdout__")
    assert "typer" in loaded
    assert not loaded & (HEAVY - {"typer", "rich"})


@pytest.mark.parametrize(
    "module", ["loading", "device.planning", "bundle.files", "measuring.bench", "measuring.doctor"]
)
def test_functions_stay_functions_whatever_is_imported_first(module: str) -> None:
    code = f"import edgepack.{module}, edgepack; assert callable(edgepack.load) and callable(edgepack.plan)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_command_imports_itself_and_no_other() -> None:
    statement = "import io, sys; sys.stdout = io.StringIO()\nfrom edgepack.cli import main; main(['run', '--help'])\n"
    loaded = loaded_after(statement + "sys.stdout = sys.__stdout__")
    assert "edgepack.cli.run" in loaded
    assert not {each for each in loaded if each.startswith("edgepack_packager")}
    assert not loaded & {"edgepack.cli.verify", "edgepack.cli.bench", "edgepack.cli.doctor"}


def test_each_command_alone_is_the_one_that_all_have() -> None:
    def names(*argv: str) -> list[str | None]:
        app = app_for(argv)
        commands = [each.name or (each.callback and each.callback.__name__) for each in app.registered_commands]
        return [*commands, *(group.name for group in app.registered_groups)]

    everything = names("--help")
    assert {"build", "run", "verify", "doctor", "engine"} <= set(everything)
    assert len(set(everything)) == len(everything)
    assert all(names(str(name), "--help") == [name] for name in everything)
    assert names("rum") == names() == everything
