"""What an application holds in its hands: options, errors, the device, and how to get a result again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import edgepack
from contract.case import LONG, Case, Watched, WatchedRuntime
from contract.registry import promise
from contract.text import COPY, PROMPTS, QUESTION
from edgepack import errors, loading, runtime
from edgepack.decoding import generation, seat
from edgepack.decoding.options import ChatOptions, GenerationOptions, read_sampling
from edgepack.decoding.repro import Repro
from edgepack.decoding.results import Result
from edgepack.errors import EdgepackError, EngineCrashedError, EngineError, UnknownOptionError
from edgepack.isolation.isolate import IsolatedSession
from edgepack.measuring.rerun import read_result, rerun
from edgepack.model import Model

ALIASES = {
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "stop_strings": "stop",
    "response_format": "json_schema",
    "temprature": "temperature",
}
LOAD_ALIASES = {"n_ctx": "context", "num_threads": "threads", "engine": "backend"}


@promise
def an_unknown_option_is_refused_by_its_right_name(case: Case) -> None:
    model = case.model
    asks: list[Callable[..., object]] = [
        lambda **options: model.generate("x", **options),
        lambda **options: model.stream("x", **options),
        lambda **options: model.chat(QUESTION, **options),
        lambda **options: model.stream_chat(QUESTION, **options),
        lambda **options: model.chat().send("x", **options),
        lambda **options: model.chat(**options).send("x"),
        lambda **options: case.runs(model.agenerate("x", **options)),
        lambda **options: case.runs(model.achat(QUESTION, **options)),
    ]
    for ask in asks:
        for wrong, right in ALIASES.items():
            with pytest.raises(TypeError, match=rf"'{wrong}'.*Did you mean {right}\?") as caught:
                ask(**{wrong: 1})
            assert isinstance(caught.value, UnknownOptionError)
        with pytest.raises(TypeError, match=r"'voice'.*It takes: max_tokens, temperature"):
            ask(voice="low")
    for wrong, right in LOAD_ALIASES.items():
        with pytest.raises(TypeError, match=rf"'{wrong}'.*Did you mean {right}\?"):
            edgepack.load(case.bundle, **{wrong: 1})  # type: ignore[arg-type]
    assert case.watch.calls == []


@an_unknown_option_is_refused_by_its_right_name.broken_by
def a_model_that_takes_any_option(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("edgepack.model.check_options", lambda what, given, known: None)


@an_unknown_option_is_refused_by_its_right_name.broken_by
def an_alias_that_is_not_known(patch: pytest.MonkeyPatch) -> None:
    patch.delitem(errors._ALIASES, "num_predict")


def taken_over(model: Model, reuse: Any) -> int:
    """Return how many tokens prompts take over that were evaluated a moment ago, in steps of CHUNK and one of less."""
    return sum(
        model.generate(LONG[:length], max_tokens=1, reuse=reuse).usage.cached_tokens
        for length in (*range(20, 60, 5),) * 2
    )


@promise
def every_option_is_honoured(case: Case) -> None:
    model, prompt = case.model, PROMPTS[1]
    greedy = model.generate(prompt, max_tokens=12)
    hot: dict[str, Any] = {"temperature": 5, "max_tokens": 12, "seed": 11}
    wild = model.generate(prompt, **hot)
    assert wild.text != greedy.text
    best = model.generate(prompt, max_tokens=12, logprobs=True, n_best=2)
    schema = {"enum": ["red", "green"]}
    case.watch.says(len(model.tokenize(COPY)), model.tokenizer.encode(" apples, green", bos=False))
    copied = model.generate(COPY, max_tokens=4, prompt_lookup=True)
    case.watch.reset()
    shown: dict[str, object] = {
        "max_tokens": len(model.generate(prompt, max_tokens=3).token_ids) == 3,
        "temperature": model.generate(prompt, **hot | {"temperature": 1e-6}).text == greedy.text,
        "top_p": model.generate(prompt, top_p=1e-6, **hot).text == greedy.text,
        "top_k": model.generate(prompt, top_k=1, **hot).text == greedy.text,
        "min_p": model.generate(prompt, min_p=1, **hot).text == greedy.text,
        "repetition_penalty": model.generate(prompt, max_tokens=12, repetition_penalty=50).text != greedy.text,
        "stop": model.generate(prompt, max_tokens=12, stop=greedy.text[5:9]).text == greedy.text[:5],
        "seed": model.generate(prompt, **hot | {"seed": 12}).text != wild.text,
        "json_schema": json.loads(model.generate(prompt, json_schema=schema).text) in schema["enum"],
        "regex": model.generate(prompt, regex="[0-9]{3}").text.isdigit(),
        "grammar": model.generate(prompt, grammar='start: "red" | "green"').text in schema["enum"],
        "logprobs": greedy.logprobs is None and len(best.logprobs or ()) == len(best.token_ids),
        "n_best": [len(each.best) for each in best.logprobs or ()] == [2] * len(best.token_ids),
        "prompt_lookup": copied.usage.drafted_tokens,
        "on_overflow": model.generate("word " * 600, max_tokens=1, on_overflow="rolling").usage.truncated_tokens,
        "reuse": taken_over(model, "exact") < taken_over(model, "all"),
    }
    offered = set(GenerationOptions.__annotations__) - {"draft"}  # tests/packager/test_draft.py has one
    assert set(shown) == offered
    assert [name for name, works in shown.items() if not works] == []
    assert set(ChatOptions.__annotations__) - set(GenerationOptions.__annotations__) == {
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "variables",
        "date",
        "control_tokens",
        "continue_final",
        "thinking",
        "thinking_tokens",
    }
    named = [{"role": "user", "content": "Hi<|im_end|>"}]
    text, default, parsed = (
        model.chat(named, max_tokens=1, control_tokens=each).repro.prompt_ids for each in ("text", None, "parse")
    )
    ends = {stop.id for stop in model.manifest.stops}
    assert text == default
    assert [sum(id in ends for id in ids) for ids in (text, parsed)] == [1, 2]
    begun = [*QUESTION, {"role": "assistant", "content": "A bundle is"}]
    assert model.detokenize(model.chat(begun, max_tokens=1, continue_final=True).repro.prompt_ids).endswith("bundle is")
    unread: tuple[dict[str, Any], ...] = (
        {"variables": {"enable_thinking": False}},
        {"date": "2026-01-01"},
        {"thinking": False},
        {"thinking_tokens": 3},
        {"tool_choice": "required"},  # contract.bound calls a tool
        {"parallel_tool_calls": False},
    )
    for refused in unread:  # the demo's template prints none of it; contract.thinking has one that does
        with pytest.raises(ValueError, match=r"template|does not think|without tools"):
            model.chat(QUESTION, **refused)


def ignored(patch: pytest.MonkeyPatch, name: str) -> None:
    """Accept an option and do nothing with it."""

    def sampling(options: Any, defaults: Any) -> Any:
        left: Any = {key: value for key, value in options.items() if key != name}
        return read_sampling(left, defaults)

    patch.setattr("edgepack.model.read_sampling", sampling)


@every_option_is_honoured.broken_by
def a_min_p_that_is_ignored(patch: pytest.MonkeyPatch) -> None:
    ignored(patch, "min_p")


@every_option_is_honoured.broken_by
def names_of_special_tokens_that_are_parsed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("edgepack.model.read_control_tokens", lambda options: "parse")


@every_option_is_honoured.broken_by
def an_answer_that_begins_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("edgepack.model.read_continue", lambda options: False)
    patch.setattr("edgepack.text.prompts.check_last", lambda messages, goes_on: None)


@every_option_is_honoured.broken_by
def a_penalty_that_is_ignored(patch: pytest.MonkeyPatch) -> None:
    ignored(patch, "repetition_penalty")


@promise
def every_error_says_what_to_do_and_is_a_builtin_too(case: Case) -> None:
    model = case.model
    asked: list[tuple[type[Exception], Callable[[], object]]] = [
        (ValueError, lambda: model.generate("x", max_tokens=0)),
        (ValueError, lambda: model.generate("x", temperature=-1)),
        (ValueError, lambda: model.generate("x", seed=2**64)),
        (ValueError, lambda: model.generate("x", stop=["a", ""])),
        (ValueError, lambda: model.generate("x", n_best=21)),
        (ValueError, lambda: model.generate("x", prompt_lookup=1)),  # type: ignore[arg-type]
        (ValueError, lambda: model.generate("x", draft=True)),  # the demo has none
        (ValueError, lambda: model.generate("half \ud800")),
        (ValueError, lambda: model.generate("x", json_schema={"type": "no type"})),
        (ValueError, lambda: model.chat([{"role": "wizard", "content": "x"}])),
        (ValueError, lambda: model.chat(QUESTION, tools=[])),
        (ValueError, lambda: model.generate("word " * 600)),
        (ValueError, lambda: model.logits([model.manifest.decoder.n_vocab])),
        (TypeError, lambda: model.generate("x", voice="low")),  # type: ignore[call-arg]
    ]
    loaded: list[tuple[type[Exception], Callable[[], object]]] = [
        (ValueError, lambda: edgepack.load(case.bundle, case.engine, 10**9)),
        (ValueError, lambda: edgepack.load(case.bundle, case.engine, threads=0)),
        (FileNotFoundError, lambda: edgepack.load(case.folder / "nowhere.edgepack")),
        (RuntimeError, lambda: runtime.find("no engine")),
    ]
    for builtin, ask in (*asked, *loaded):
        with pytest.raises(builtin) as caught:
            ask()
        assert isinstance(caught.value, EdgepackError)
        assert caught.value.message.endswith(".")
        assert caught.value.hint, caught.value.message
        assert caught.value.hint in str(caught.value)
        if (builtin, ask) in asked:
            case.same(("error", asked.index((builtin, ask))), str(caught.value))
    assert issubclass(errors.EngineTimeoutError, TimeoutError)
    assert case.watch.calls == []


@every_error_says_what_to_do_and_is_a_builtin_too.broken_by
def an_error_without_a_hint(patch: pytest.MonkeyPatch) -> None:
    real = EdgepackError.__init__

    def init(self: EdgepackError, message: str, *, hint: str | None = None) -> None:
        real(self, message)

    patch.setattr(EdgepackError, "__init__", init)


@promise
def the_device_is_what_runs(case: Case) -> None:
    model = case.model
    assert model.device == case.watch.engine.device == model.setup.device
    assert model.generate("x", max_tokens=1).repro.setup.device == model.device
    assert (model.backend, model.variant.id) == (case.engine, case.variant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watched, "device", "tpu")
        runtimes = {case.engine: WatchedRuntime(case.engine)}
        with pytest.raises(EngineError, match=r"cpu.*tpu") as caught:
            edgepack.load(case.bundle, case.engine, 64, variant=case.variant, runtimes=runtimes)
        assert caught.value.hint


@the_device_is_what_runs.broken_by
def a_device_that_was_asked_for_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Model, "device", "cuda")


@the_device_is_what_runs.broken_by
def a_substitute_in_silence(patch: pytest.MonkeyPatch) -> None:
    def open_session(bundle: Any, candidate: Any, options: Any, engine: Any) -> Any:
        return engine.open(bundle.variant_path(candidate.variant), bundle.manifest.decoder, options)

    patch.setattr(loading, "open_session", open_session)


@promise
def a_result_is_json_and_says_how_to_get_it_again(case: Case) -> None:
    model = case.model
    model.generate("The apples are red. " * 6, max_tokens=2)
    result = model.generate("The apples are red. " * 7, temperature=2, max_tokens=6, stop="\0", prompt_lookup=True)
    document = json.loads(json.dumps(result.to_dict()))
    made = document["repro"]
    assert document["sampling"]["seed"] == result.sampling.seed is not None
    assert made["setup"]["bundle_id"] == case.bundle.id
    assert (made["setup"]["variant"], made["setup"]["backend"]) == (case.variant, case.engine)
    for fact in ("engine", "device", "context", "kv_cache", "threads", "chunk", "machine"):
        assert made["setup"][fact], fact
    assert set(made["setup"]["packages"]) >= {"edgepack", "numpy", "tokenizers", "jinja2", "llguidance"}
    assert made["prompt_ids"] == model.tokenize("The apples are red. " * 7)
    assert sum(kept * times for kept, _, times in made["cached"]) == result.usage.cached_tokens > 0
    assert (made["max_tokens"], made["stop"], made["prompt_lookup"]) == (6, ["\0"], True)
    path = case.folder / f"{case.engine}.json"
    path.write_text(json.dumps(document))
    again = rerun(read_result(path))
    assert again.same, (again.first_difference, again.changed)
    assert not again.changed


@a_result_is_json_and_says_how_to_get_it_again.broken_by
def a_result_that_forgets_what_was_cached(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generation, "Repro", lambda **fields: Repro(**fields | {"cached": ()}))


@a_result_is_json_and_says_how_to_get_it_again.broken_by
def a_result_of_another_seed(patch: pytest.MonkeyPatch) -> None:
    def result(**fields: Any) -> Result:
        return Result(**fields | {"sampling": replace(fields["sampling"], seed=1)})

    patch.setattr(generation, "Result", result)


# An engine in a process of its own


@promise
def an_isolated_engine_may_crash_and_the_next_call_works(case: Case) -> None:
    prompt = LONG * 6  # more than one step
    options: dict[str, Any] = {"context": 256, "variant": case.variant, "kv_cache": "f32", "threads": 1}
    with edgepack.load(case.bundle, case.engine, isolate=True, **options) as model:
        text = model.generate(prompt, max_tokens=4).text
        assert text == case.model.generate(prompt, max_tokens=4).text
        session = model._desk.session
        assert isinstance(session, IsolatedSession)
        with model.stream(prompt, max_tokens=4) as stream:
            next(stream)
            session._child._process.kill()
            with pytest.raises(EngineCrashedError, match="process") as caught:
                list(stream)
        assert caught.value.hint
        assert model.generate(prompt, max_tokens=4).text == text
        assert model.device == case.model.device


@an_isolated_engine_may_crash_and_the_next_call_works.broken_by
def a_crash_that_ends_the_model(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(seat, "EngineCrashedError", errors.EngineTimeoutError)
