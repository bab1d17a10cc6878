"""A model over the fake runtime: texts, stops, limits, counts, streams, and what happens when things go wrong."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny_tokenizers as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack import fake
from edgepack.bundle.manifest import Chat, Generation, Manifest, Stop
from edgepack.errors import EngineError, PromptTooLongError, UnknownOptionError, UsageError
from edgepack.fake import FakeRuntime, FakeSession
from edgepack.model import Model
from edgepack.runtime import Options
from edgepack.text.chat import ChatTemplate
from edgepack.text.tokenizer import Tokenizer

END = 256
USER = [{"role": "user", "content": "Hi"}]


TEMPLATE = "{{ bos_token }}[{{ messages[0].content }}]"


def sentencepiece(
    says: str | list[int], *, generation: Generation | None = None, template: str | None = TEMPLATE
) -> Model:
    """A model with a SentencePiece-style tokenizer, BOS 1 and the stop token 2, that says a text or token ids.

    Its embedding has 8 rows more than the tokenizer has tokens.
    """
    tokenizer = Tokenizer.from_json(tiny.sentencepiece(), 1, True)
    script = [*tokenizer.encode(says, bos=False), 2] if isinstance(says, str) else says
    base = fake.model().manifest
    manifest: Manifest = msgspec.structs.replace(
        base,
        decoder=msgspec.structs.replace(base.decoder, n_vocab=tokenizer.n_tokens + 8),
        stops=[Stop(id=2, text="</s>", sources=[])],
        generation=generation or Generation(),
        chat=Chat(roles=["user", "assistant"], date=None, goldens=[]),
    )
    options = Options(context=64, threads=1, kv_cache="f32")
    return Model(
        manifest=manifest,
        setup=fake.setup(manifest, options),
        opening=lambda: FakeRuntime(script).open(Path(), manifest.decoder, options),
        options=options,
        tokenizer=tokenizer,
        template=None if template is None else ChatTemplate(template, bos_token="<s>", eos_token="", date=None),
        began=perf_counter() - 1.5,
    )


def test_a_text_ends_at_the_stop_token() -> None:
    with fake.model(says="Hello, wörld!") as model:
        result = model.generate("Hi")
    assert result.text == "Hello, wörld!"
    assert (result.finish_reason, result.stop) == ("stop", END)
    assert bytes(result.token_ids).decode() == "Hello, wörld!"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (2, 15)


def test_a_stream_gives_the_same_in_pieces() -> None:
    with fake.model(says="Hello, 🚀!") as model, model.stream("Hi") as stream:
        chunks = list(stream)
        result = stream.result
    assert "".join(chunk.text for chunk in chunks) == result.text == "Hello, 🚀!"
    assert [token for chunk in chunks for token in chunk.token_ids] == list(result.token_ids)
    assert [chunk.text for chunk in chunks[-2:]] == ["🚀", "!"]
    assert len(chunks[-2].token_ids) == 4


@settings(max_examples=60, deadline=None)
@given(st.text("ab\né", max_size=12), st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_the_text_and_nothing_else(text: str, stops: list[str]) -> None:
    with fake.model(says=text) as model:
        with model.stream("x", stop=stops) as stream:
            chunks = list(stream)
        result = stream.result
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert [token for chunk in chunks for token in chunk.token_ids] == list(result.token_ids)
    assert not any(stop in result.text for stop in stops)
    if any(stop in text for stop in stops):
        assert result.stop in stops
        assert text.startswith(result.text + str(result.stop))
        # The tokens that spelled the stop string are counted, and nothing was generated after them.
        assert bytes(result.token_ids).decode() == result.text + str(result.stop)
    else:
        assert (result.text, result.stop) == (text, END)


def test_a_stop_string_may_be_a_single_string() -> None:
    with fake.model(says="one two three") as model:
        result = model.generate("x", stop=" t")
    assert (result.text, result.stop, result.finish_reason) == ("one", " t", "stop")


def test_max_tokens_ends_with_length_and_flushes_what_is_held() -> None:
    with fake.model(says="aé\nUser: b") as model:
        short = model.generate("x", max_tokens=2)
        held = model.generate("x", max_tokens=6, stop="\nUser:")
    assert (short.text, short.finish_reason, short.stop) == ("a", "length", None)  # half of the é stays out
    assert short.usage.completion_tokens == len(short.token_ids) == 2
    assert (held.text, held.finish_reason) == ("aé\nUs", "length")


def test_the_end_of_the_context_ends_with_length() -> None:
    with fake.model(says="abcdefgh", context=6) as model:
        assert model.context == 6
        result = model.generate("xyz", max_tokens=100)
        full = model.generate("uvwxyz")
    assert (result.text, result.finish_reason) == ("abcd", "length")  # the last token needs no room
    assert (full.text, full.usage.prompt_tokens) == ("a", 6)


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_evaluated() -> None:
    steps: list[int] = []
    with fake.model(says="a", context=4, before_step=lambda session: steps.append(session.length)) as model:
        with pytest.raises(PromptTooLongError, match=r"has 5 tokens, the context 4\. .*context=5 or more"):
            model.stream("hello")
        with pytest.raises(PromptTooLongError, match="has 5 tokens"):
            model.logits([1, 2, 3, 4, 5])
        assert steps == []
        assert model.generate("hell").text == "a"


def test_a_prompt_longer_than_the_bundle_allows_names_its_limit() -> None:
    with fake.model(context=4) as model:
        with pytest.raises(PromptTooLongError, match="made for 131072 tokens"):
            model.generate("x" * 2**21)
        # Of a prompt that is refused by its bytes nobody knows how many tokens it has.
        with pytest.raises(PromptTooLongError, match=r"at least .* a larger context, of up to 131072"):
            model.generate("x" * 131073)


def test_an_empty_prompt_needs_a_bos() -> None:
    with fake.model(says="a") as model, pytest.raises(UsageError, match="no BOS"):
        model.generate("")
    with sentencepiece("the sea") as model:
        result = model.generate("")
    assert (result.text, result.usage.prompt_tokens) == ("the sea", 1)


def test_the_space_between_a_prompt_and_its_continuation_is_kept() -> None:
    with sentencepiece("the sea") as model:
        assert model.generate("by").text == " the sea"
        assert model.chat(USER).text == "the sea"


def test_chat_parses_special_tokens_and_does_not_double_bos() -> None:
    with sentencepiece("hello") as model:
        plain = len(model.tokenize("[Hi]"))
        assert model.chat(USER).usage.prompt_tokens == plain
        assert model.tokenize("<s>").count(1) == 1
        assert model.tokenize("hello") == [1, *Tokenizer.from_json(tiny.sentencepiece(), 1, False).encode("hello")]
        assert model.detokenize(model.tokenize("hello")) == "hello"


def test_chat_goes_through_the_template() -> None:
    with fake.model(says="Yes.") as model:
        with model.stream_chat(USER) as stream:
            text = "".join(chunk.text for chunk in stream)
        # <|start|> and <|end|> are one token each, everything else is bytes.
        assert stream.result.usage.prompt_tokens == len("|user\nHi|\n|assistant\n")
    assert text == stream.result.text == "Yes."


def test_chat_refuses_what_the_template_does_not_know() -> None:
    with fake.model() as model:
        with pytest.raises(UsageError, match=r"messages\[1\]\.role is 'usr'.*system, user, assistant"):
            model.chat([*USER, {"role": "usr", "content": "Hi"}])
        with pytest.raises(UsageError, match=r"messages\[0\]\.content"):
            model.chat([{"role": "user"}])
    with sentencepiece("hello", template=None) as model, pytest.raises(UsageError, match="no chat template"):
        model.stream_chat(USER)


def test_tokens_of_padding_and_special_tokens_give_no_text() -> None:
    padding = Tokenizer.from_json(tiny.sentencepiece(), 1, True).n_tokens + 7
    with sentencepiece([padding, 1, 3 + 0x61, 2]) as model:
        result = model.generate("by")
    assert (result.text, result.token_ids) == ("a", (padding, 1, 3 + 0x61))


def test_none_means_the_bundles_default() -> None:
    generation = Generation(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, max_tokens=3)
    with sentencepiece("hello, world! the sea", generation=generation) as model:
        result = model.generate("by", seed=4)
        other = model.generate("by", seed=4, temperature=0, top_k=0, max_tokens=1)
    assert result.sampling.to_dict() == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 4,
    }  # fmt: skip
    assert (result.finish_reason, len(result.token_ids)) == ("length", 3)
    assert (other.sampling.temperature, other.sampling.top_k, other.sampling.top_p) == (0, 0, 0.9)
    assert len(other.token_ids) == 1


def test_a_reported_seed_gives_the_text_again() -> None:
    with fake.model() as model:
        first = model.generate("Hi", temperature=20, max_tokens=30)
        again = model.generate("Hi", temperature=20, max_tokens=30, seed=first.sampling.seed)
        other = model.generate("Hi", temperature=20, max_tokens=30)
    assert first.token_ids == again.token_ids != other.token_ids


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 2}, "top_p is 2"),
        ({"stop": ""}, "stop is an empty string"),
        ({"stop": ["a", ""]}, r"stop\[1\] is ''"),
        ({"stop": ["a", 3]}, r"stop\[1\] is 3"),
        ({"stop": 3}, "stop is of type int"),
    ],
)
def test_wrong_options_are_refused_at_the_call(options: dict[str, Any], place: str) -> None:
    with fake.model() as model:
        for call in (lambda: model.stream("x", **options), lambda: model.stream_chat(USER, **options)):
            with pytest.raises(UsageError, match=place):
                call()


def test_options_are_keyword_only_and_unknown_ones_are_errors() -> None:
    with fake.model() as model:
        for call in (model.generate, model.stream, model.chat, model.stream_chat):
            kinds = [parameter.kind for parameter in inspect.signature(call).parameters.values()]
            assert set(kinds[1:]) <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
            with pytest.raises(UnknownOptionError, match=r"'temprature'.*Did you mean temperature"):
                call("x", temprature=1)
            with pytest.raises(TypeError, match=r"'voice'.*It takes: max_tokens, temperature"):
                call("x", voice="low")


def test_logits_are_those_of_a_fresh_context() -> None:
    with fake.model(says="abc") as model:
        model.generate("something else")
        logits = model.logits([1, 2, 3])
        assert logits.shape == (3, model.manifest.decoder.n_vocab)
        assert np.array_equal(logits[:1], model.logits([1, 2])[:1])
        assert np.array_equal(logits, model.logits([1, 2, 3]))
        with pytest.raises(UsageError, match="ids is empty"):
            model.logits([])
        with pytest.raises(UsageError, match=r"ids\[1\] is 258.*0 to 257"):
            model.logits([1, 258])


def test_one_stream_at_a_time() -> None:
    with fake.model(says="abc") as model:
        waiting = model.stream("y")
        with model.stream("x") as stream:
            next(stream)
            for call in (lambda: model.generate("y"), lambda: model.logits([1]), waiting.__enter__):
                with pytest.raises(UsageError, match="still open"):
                    call()
            assert [chunk.text for chunk in stream] == ["b", "c"]
            # At its end a stream frees the model, even before its block is left.
            assert model.generate("y").text == "abc"
        with waiting:
            assert [chunk.text for chunk in waiting] == ["a", "b", "c"]


def test_leaving_a_stream_early_frees_the_model() -> None:
    with fake.model(says="abc") as model:
        with model.stream("x") as stream:
            next(stream)
        assert (stream.result.text, stream.result.finish_reason) == ("a", "cancelled")
        assert list(stream) == []
        with pytest.raises(KeyError), model.stream("x") as stream:
            raise KeyError
        assert model.generate("x").text == "abc"


def test_a_stream_is_read_in_its_with_block_once() -> None:
    with fake.model(says="abc") as model:
        stream = model.stream("x")
        with pytest.raises(UsageError, match="with block"):
            next(stream)
        with pytest.raises(UsageError, match="no result"):
            _ = stream.result
        with stream:
            list(stream)
        with pytest.raises(UsageError, match="twice"):
            stream.__enter__()


def test_a_cancel_ends_the_stream_with_what_there_is() -> None:
    with fake.model(says="ab\nUser") as model:
        with model.stream("x", stop="\nUser:") as stream:
            texts = [next(stream).text, next(stream).text]
            stream.cancel()
            texts += [chunk.text for chunk in stream]
        assert texts == ["a", "b"]
        assert (stream.result.text, stream.result.finish_reason) == ("ab", "cancelled")
        assert model.generate("x").finish_reason == "stop"


def test_a_cancel_from_another_thread_reaches_the_prefill() -> None:
    evaluated: list[int] = []

    def cancel_in_the_second_step(session: FakeSession) -> None:
        evaluated.append(session.length)
        if len(evaluated) == 2:
            thread = Thread(target=stream.cancel)
            thread.start()
            thread.join()

    with fake.model(says="abc", before_step=cancel_in_the_second_step) as model:
        stream = model.stream("x" * 1000)
        with stream:
            assert list(stream) == []
        assert evaluated == [0, 128]
        result = stream.result
        assert (result.finish_reason, result.text, result.usage.completion_tokens) == ("cancelled", "", 0)
        assert (result.timings.ttft_s, result.timings.decode_tps) == (None, None)
        assert model.generate("x").text == "abc"


def test_a_cancel_before_the_first_token_evaluates_nothing() -> None:
    steps: list[int] = []
    with fake.model(says="a", before_step=lambda session: steps.append(session.length)) as model:
        with model.stream("x") as stream:
            stream.cancel()
            assert list(stream) == []
        assert steps == []
        stream.cancel()  # the model is free: a late cancel touches nobody
        assert model.generate("x").text == "a"


def test_an_engine_that_failed_is_out_of_use() -> None:
    with fake.model(says="abc", fail_at=3) as model:
        with pytest.raises(EngineError, match="failed at forward 3"), model.stream("x") as stream:
            list(stream)
        with pytest.raises(UsageError, match="no result"):
            _ = stream.result
        with pytest.raises(EngineError, match=r"failed earlier: .*forward 3.*Load the bundle again"):
            model.generate("x")


def test_logits_that_are_no_numbers_end_the_stream_with_an_error() -> None:
    with fake.model(says="abc", nan_at=2) as model, pytest.raises(EngineError, match="nan"):
        model.generate("x")


def test_a_closed_model_refuses() -> None:
    model = fake.model(says="abc")
    with model.stream("x") as stream:
        next(stream)
        model.close()
        assert list(stream) == []
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.generate("x")
    with pytest.raises(EngineError, match="closed"):
        model.logits([1])


def test_times_and_counts_fit_together() -> None:
    with sentencepiece("hello, world! the sea") as model:
        result = model.generate("by the sea")
    timings = result.timings
    assert timings.load_s is not None
    assert timings.load_s > 1.5
    assert timings.ttft_s is not None
    assert timings.ttft_s > 0
    assert timings.prefill_tps is not None
    assert timings.decode_tps is not None
    assert result.usage.completion_tokens == len(result.token_ids) + 1


def test_a_result_is_json() -> None:
    with fake.model(says="Hi") as model:
        with model.stream("x", temperature=0.5, seed=1) as stream:
            chunk = next(stream)
            list(stream)
        document = json.loads(json.dumps(stream.result.to_dict()))
    assert list(document) == [
        *("text", "reasoning", "token_ids", "finish_reason", "stop", "sampling", "usage", "timings"),
        *("tool_calls", "repro"),
    ]
    assert (document["token_ids"], document["sampling"]["seed"]) == ([72, 105], 1)
    assert set(document["timings"]) == {"load_s", "ttft_s", "prefill_tps", "decode_tps"}
    assert chunk.to_dict() == {"text": "H", "reasoning": "", "token_ids": [72]}


def test_the_import_is_light() -> None:
    code = "import sys, edgepack.model; print({'tokenizers', 'jinja2', 'typer', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
