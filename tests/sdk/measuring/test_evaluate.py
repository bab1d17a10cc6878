"""Score, eval and compare: their figures against arithmetic on the reference's logits, and two models side by side."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bundle
from models import make_llama
from numpy.typing import NDArray

import edgepack
from edgepack import EngineError, FakeRuntime, Model, PromptTooLongError, UsageError, fake
from edgepack.cli import losses, main
from edgepack.decoding.score import SLICE, Window, score, windows
from edgepack.measuring.compare import Prompt, compare, read_prompts
from edgepack.measuring.evaluate import Evaluated, divergence, evaluate, mean
from edgepack_packager import families, reference, source
from edgepack_packager.build import Built, build
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.recipe import Recipe

TEXT = (
    "Once upon a time, a young cat lived in a quiet village by the river. The cat wanted to learn a song, "
    "but the way was long and the rain was strong. Then a duck came along — and brought a lantern. "
) * 3
CONTEXT = 64
EXACT = ("gguf-f32", "onnx-f32", "mlx-f32")
SMALL = {"gguf": "gguf-q4_k_m", "onnx": "onnx-int4_mixed", "mlx": "mlx-4bit_mixed"}

Rows = NDArray[np.float64]


def loaded(path: Path, variant: str | None = None, **options: Any) -> Model:
    """A model on one thread: the tests may share the machine."""
    return edgepack.load(path, variant=variant, threads=1, **options)


def log_softmax(logits: NDArray[np.float32]) -> Rows:
    exact = logits.astype(np.float64)
    return np.asarray(exact - np.logaddexp.reduce(exact, axis=1, keepdims=True))


def reference_rows(folder: Path, ids: Sequence[int], context: int, bos: int | None = None) -> Rows:
    """The reference's logprobs after what stands before each id but the first, in windows of the context."""
    rows = []
    with open_checkpoint(folder) as checkpoint:
        weights = families.open_model(checkpoint, None)
        for start in range(1, len(ids), context):
            read = list(ids[start - 1 : start + context - 1])[: len(ids) - start]
            if bos is not None:
                read[0] = bos
            rows.append(log_softmax(reference.logits(weights, read)))
    return np.concatenate(rows)


def of_the_text(rows: Rows, ids: Sequence[int]) -> float:
    """The log-likelihood of the ids after the first."""
    return float(rows[np.arange(len(rows)), list(ids[1:])].sum())


@pytest.fixture(scope="module")
def demo(demo_bundle: Built) -> Path:
    return demo_bundle.path


@pytest.fixture(scope="module")
def expected(demo: Path) -> tuple[list[int], Rows]:
    with loaded(demo, "gguf-f32") as model:
        ids = model.tokenize(TEXT)
    assert len(ids) > 2 * CONTEXT
    return ids, reference_rows(source.find("demo").folder, ids, CONTEXT)


# Score


@pytest.mark.parametrize("variant", EXACT)
def test_a_score_is_the_references(variant: str, demo: Path, expected: tuple[list[int], Rows]) -> None:
    ids, rows = expected
    with loaded(demo, variant, context=CONTEXT) as model:
        found = model.score(TEXT)
    likelihood = of_the_text(rows, ids)
    assert found.tokens == len(ids) - 1
    assert found.log_likelihood == pytest.approx(likelihood, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(-likelihood / found.tokens), rel=1e-4)
    assert [each.token_id for each in found.logprobs] == ids[1:]
    assert [each.logprob for each in found.logprobs] == pytest.approx(
        rows[np.arange(len(rows)), ids[1:]], rel=1e-4, abs=1e-4
    )


def test_slices_of_any_size_give_the_same(demo: Path) -> None:
    with loaded(demo, "gguf-f32", context=CONTEXT) as model:
        one, seven, many = (score(model, TEXT, slice_tokens=size).perplexity for size in (1, 7, 32))
    assert one == pytest.approx(seven, rel=1e-5)
    assert one == pytest.approx(many, rel=1e-5)


def test_a_text_and_its_ids_score_the_same(demo: Path) -> None:
    with loaded(demo, "gguf-f32", context=CONTEXT) as model:
        assert score(model, model.tokenize(TEXT)) == model.score(TEXT)
        plain = model.score("the cat").to_dict()
    assert json.loads(json.dumps(plain)) == plain


def test_windows() -> None:
    assert windows([5, 6, 7, 8, 9], 2, None) == [Window((5, 6), (6, 7)), Window((7, 8), (8, 9))]
    assert windows([1, 6, 7, 8], 2, 1) == [Window((1, 6), (6, 7)), Window((1,), (8,))]
    assert windows([5, 6, 7], 2, 1) == [Window((5, 6), (6, 7))]
    assert windows([5, 6], 4096, None) == [Window((5,), (6,))]


@pytest.mark.parametrize("ids", [[], [3]])
def test_nothing_to_predict_is_refused(ids: list[int]) -> None:
    with fake.model() as model, pytest.raises(UsageError, match=f"too few tokens to predict one: {len(ids)}"):
        score(model, ids)


def test_every_window_of_a_bundle_with_bos_begins_with_it(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", add_bos=True, dtype="f32")
    built = build(str(folder), Recipe(("gguf",), ("f32",), unproven=True), tmp_path / "bos.edgepack")
    with loaded(built.path, context=CONTEXT) as model:
        ids = model.tokenize(TEXT)
        found = model.score(TEXT)
        report = evaluate(model, TEXT)
    assert ids[0] == 1
    assert found.tokens == len(ids) - 1
    assert found.log_likelihood == pytest.approx(
        of_the_text(reference_rows(folder, ids, CONTEXT, bos=1), ids), rel=1e-4
    )
    assert report.bytes == len(TEXT.encode())


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with fake.model(nan_at=2) as model, pytest.raises(EngineError, match="not a finite number"):
        model.score("x" * 40)


# Evaluate


@pytest.mark.parametrize("backend", SMALL)
def test_figures_against_another_variant(backend: str, demo: Path, expected: tuple[list[int], Rows]) -> None:
    ids, _ = expected
    with (
        loaded(demo, SMALL[backend], context=2 * CONTEXT) as model,
        loaded(demo, f"{backend}-f32", context=CONTEXT) as exact,
    ):
        seen: list[tuple[int, int]] = []
        report = evaluate(model, TEXT, against=exact, progress=lambda done, total: seen.append((done, total)))
        spans = windows(ids, CONTEXT, None)
        q, p = (
            np.concatenate([log_softmax(rows) for window in spans for rows in each.evaluate(window.inputs, SLICE)])
            for each in (model, exact)
        )
    against = report.against
    assert against is not None
    total = len(ids) - 1
    assert (report.tokens, report.windows, report.context) == (total, len(spans), CONTEXT)
    assert seen == [(done, total) for done in range(1, total + 1)]
    assert report.model.perplexity == pytest.approx(math.exp(-of_the_text(q, ids) / total), rel=1e-6)
    assert against.other.perplexity == pytest.approx(math.exp(-of_the_text(p, ids) / total), rel=1e-6)
    assert against.perplexity_ratio == pytest.approx(report.model.perplexity / against.other.perplexity)
    forward, backward = (float((np.exp(a) * (a - b)).sum(axis=1).mean()) for a, b in ((p, q), (q, p)))
    assert abs(forward - backward) > 1e-3 * forward
    assert against.kl == pytest.approx(forward, rel=1e-6)
    assert against.top1 == float((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    assert against.top1 < 1
    size = len(model.detokenize(ids[1:]).encode())
    assert report.bytes == size
    assert report.model.bits_per_byte == pytest.approx(math.log2(report.model.perplexity) * total / size, rel=1e-9)
    chosen = np.arange(total), list(ids[1:])
    surprise, theirs = -q[chosen], -p[chosen]
    kl, same = (np.exp(p) * (p - q)).sum(axis=1), p.argmax(axis=1) == q.argmax(axis=1)
    errors = [float(np.std(each, ddof=1)) / math.sqrt(total) for each in (surprise, kl, same, surprise - theirs)]
    assert report.model.perplexity_error == pytest.approx(report.model.perplexity * errors[0], rel=1e-5)
    assert report.model.bits_per_byte_error == pytest.approx(errors[0] * total / size / math.log(2), rel=1e-5)
    assert against.kl_error == pytest.approx(errors[1], rel=1e-4)
    assert against.top1_error == pytest.approx(errors[2], rel=1e-9)
    assert against.perplexity_ratio_error == pytest.approx(against.perplexity_ratio * errors[3], rel=1e-4)
    assert against.perplexity_ratio_error < report.model.perplexity_error / against.other.perplexity / 2  # of pairs
    assert report.source == model.variant.proof.loss["text"]  # type: ignore[union-attr]


def test_a_variant_is_no_way_from_itself(demo: Path) -> None:
    with (
        loaded(demo, "gguf-q4_k_m", context=CONTEXT) as model,
        loaded(demo, "gguf-q4_k_m", context=2 * CONTEXT) as same,
    ):
        report = evaluate(model, TEXT, against=same)
    assert report.context == CONTEXT
    assert report.against is not None
    assert abs(report.against.kl) < 1e-9
    assert (report.against.top1, report.against.perplexity_ratio) == (1, 1)
    assert (report.against.top1_error, report.against.perplexity_ratio_error) == (0, 0)


def test_a_mean_and_its_error() -> None:
    assert mean([3.0]) == (3.0, 0.0)
    assert mean([1.0, 2.0, 3.0, 6.0]) == (3.0, pytest.approx(math.sqrt(14 / 3) / 2))


def test_divergence() -> None:
    # KL((1/2, 1/2) || (3/4, 1/4)) = log(2/sqrt(3)), and the other way round log(27/16)/4.
    half, quarter = np.log(np.float32([1, 1])), np.log(np.float32([3, 1]))
    assert divergence(half, quarter) == pytest.approx(math.log(2 / math.sqrt(3)), abs=1e-7)
    assert divergence(quarter, half) == pytest.approx(math.log(27 / 16) / 4, abs=1e-7)
    rng = np.random.default_rng(0)
    p, q = (rng.standard_normal((1, 10_000)).astype(np.float32) * 5 for _ in range(2))
    log_p, log_q = log_softmax(p)[0], log_softmax(q)[0]
    assert divergence(p[0], q[0]) == pytest.approx(float((np.exp(log_p) * (log_p - log_q)).sum()), rel=1e-12)
    assert divergence(p[0], p[0]) == 0


def test_a_limit_reads_the_beginning(demo: Path) -> None:
    with loaded(demo, "gguf-f32") as model:
        ids = model.tokenize(TEXT)[:20]
        assert evaluate(model, TEXT, limit=20).model.perplexity == score(model, ids).perplexity


def test_the_memory_does_not_grow_with_the_text() -> None:
    tokens = 8192
    with fake.model() as model, fake.model() as other:
        tracemalloc.start()
        evaluate(model, "x" * tokens, against=other)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < tokens * model.manifest.decoder.n_vocab * 4 / 3


def test_other_tokens_are_refused_with_the_first_difference(demo: Path) -> None:
    with (
        fake.model() as model,
        loaded(demo, "gguf-f32") as other,
        pytest.raises(UsageError, match=r"at index 0, fake has 99 \('c'\) and demo 69 \('c'\)") as raised,
    ):
        evaluate(model, "cats and dogs", against=other)
    assert "bits per byte" in str(raised.value)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    runtimes = {"fake": FakeRuntime()}
    path = small_bundle.write(tmp_path / "small")
    decoder = small_bundle.manifest([])["decoder"] | {"n_vocab": 264}
    larger = small_bundle.write(tmp_path / "larger", decoder=decoder)
    with (
        loaded(path, runtimes=runtimes) as model,
        loaded(larger, runtimes=runtimes) as other,
        pytest.raises(UsageError, match="vocabularies of 260 and 264 tokens"),
    ):
        evaluate(model, "hello", against=other)


# Compare


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("one\n\n  two \r\nthree", ["one", "two", "three"]),
        ("what is {x}?\n{y}", ["what is {x}?", "{y}"]),
        ('{"prompt": "a\\nb"}\n\n{"messages": [{"role": "user", "content": "\u2028"}]}\n',
         ["a\nb", [{"role": "user", "content": "\u2028"}]]),
    ],
)  # fmt: skip
def test_prompts_of_a_file(text: str, prompts: list[Prompt]) -> None:
    assert read_prompts(text) == prompts


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no prompt"),
        (" \n\n", "no prompt"),
        ('{"prompt": "a"}\nplain', "Line 2 of the prompts is not JSON"),
        ("{plain", "Line 1"),
        ('\n{"prompt": 3}', "Line 2 of the prompts is no prompt"),
        ('{"messages": "a"}', "Line 1"),
        ('{"prompt": "a", "system": "b"}', "Line 1"),
        ('{"question": "a"}', "Line 1"),
        ('{"prompt": "a"}\n["a"]', "Line 2"),
    ],
)
def test_what_is_no_prompt_is_named(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        read_prompts(text)


def opening(path: Path, variant: str) -> Callable[[], Model]:
    return partial(loaded, path, variant)


def test_exact_variants_answer_the_same(demo: Path) -> None:
    done: list[int] = []
    prompts: list[Prompt] = ["What is edgepack?", [{"role": "user", "content": "Tell me a story."}]]
    found = compare(
        opening(demo, "gguf-f32"),
        opening(demo, "onnx-f32"),
        prompts,
        options={"max_tokens": 24},
        progress=lambda: done.append(1),
    )
    assert (found.identical, len(found.pairs), len(done)) == (2, 2, 4)
    assert [pair.prompt for pair in found.pairs] == prompts
    for pair in found.pairs:
        assert pair.a.token_ids == pair.b.token_ids
        assert (pair.common_tokens, pair.first_difference) == (len(pair.a.token_ids), None)
        assert pair.a.sampling.temperature == 0
    for side, name in ((found.a, "gguf"), (found.b, "onnx")):
        assert (side.setup.variant, side.setup.device, side.chat) == (f"{name}-f32", "cpu", True)
        assert None not in (side.load_s, side.ttft_s, side.prefill_tps, side.decode_tps)
    plain = found.to_dict()
    assert json.loads(json.dumps(plain))["pairs"][0]["a"]["text"] == found.pairs[0].a.text


def test_the_first_difference_is_named(demo: Path) -> None:
    prompt = "Tell me a story about a king and a fish."
    found = compare(opening(demo, "gguf-f32"), opening(demo, "onnx-int4_mixed"), [prompt], options={"max_tokens": 48})
    (pair,) = found.pairs
    assert (found.identical, pair.identical) == (0, False)
    assert pair.common_tokens is not None
    common = pair.common_tokens
    assert pair.a.token_ids[:common] == pair.b.token_ids[:common]
    with loaded(demo, "gguf-f32") as model:
        pieces = tuple(model.tokenizer.piece(each.token_ids[common]) for each in (pair.a, pair.b))
    assert pair.first_difference == pieces
    assert pieces[0] != pieces[1]


def test_an_answer_that_ends_earlier_has_no_token_there() -> None:
    found = compare(
        lambda: fake.model(says="Hello"), lambda: fake.model(says="Hello you"), ["hi"], options={"max_tokens": 20}
    )
    (pair,) = found.pairs
    assert (pair.a.text, pair.b.text) == ("Hello", "Hello you")
    assert (pair.common_tokens, pair.first_difference) == (5, (None, " "))


def test_raw_leaves_out_the_template(demo: Path) -> None:
    both = opening(demo, "gguf-f32"), opening(demo, "gguf-f32")
    found = compare(*both, ["The cat"], raw=True, options={"max_tokens": 2})
    with loaded(demo, "gguf-f32") as model:
        assert found.pairs[0].a.usage.prompt_tokens == len(model.tokenize("The cat"))
    assert not found.a.chat
    with pytest.raises(UsageError, match="Prompt 1: A conversation needs the chat template"):
        compare(*both, [[{"role": "user", "content": "hi"}]], raw=True)


def test_both_draw_with_one_seed(demo: Path) -> None:
    both = opening(demo, "gguf-f32"), opening(demo, "gguf-f32")
    (hot,) = compare(*both, ["A story:"], options={"max_tokens": 24, "temperature": 1.5}).pairs
    assert hot.identical
    (other,) = compare(*both, ["A story:"], options={"max_tokens": 24, "temperature": 1.5, "seed": 1}).pairs
    assert other.a.text != hot.a.text


def test_the_first_is_closed_before_the_second_is_opened() -> None:
    opened: list[Model] = []

    def fresh() -> Model:
        for model in opened:
            with pytest.raises(EngineError, match="closed"):
                model.generate("hi")
        opened.append(fake.model(says="Hello"))
        return opened[-1]

    compare(fresh, fresh, ["hi"])
    assert len(opened) == 2


def test_other_tokenizers_compare_by_text(demo: Path) -> None:
    found = compare(lambda: fake.model(says="Hello"), opening(demo, "gguf-f32"), ["hi"], options={"max_tokens": 4})
    (pair,) = found.pairs
    assert (pair.identical, pair.common_tokens, pair.first_difference) == (False, None, None)


def test_a_refused_prompt_is_numbered() -> None:
    def small() -> Model:
        return fake.model(context=40)

    with pytest.raises(PromptTooLongError, match="Prompt 2: The prompt has"):
        compare(small, small, ["hi", "x" * 100])


# The command line

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


def test_eval_on_the_command_line(invoke: Invoke, demo: Path, text: Path) -> None:
    with loaded(demo, "gguf-f32", context=CONTEXT) as model:
        wanted = evaluate(model, TEXT)
    asked = ("eval", demo, "--text", text, "--variant", "gguf-f32", "--context", CONTEXT, "--threads", 1)
    code, out, err = invoke(*asked, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"variants": [json.loads(json.dumps(wanted.to_dict()))], "left_out": {}}
    code, out, err = invoke(*asked)
    assert (code, err) == (0, "")
    (row,) = [line for line in out.splitlines() if "gguf on cpu" in line]
    assert row.split()[:7] == ["gguf-f32", "gguf", "on", "cpu", *shown(wanted.model).split()]
    assert "Against the source in float32" in out
    assert "Against demo" not in out
    code, out, err = invoke(*asked, "--limit", 10, "--json")
    assert json.loads(out)["variants"][0]["tokens"] == 9


def shown(of: Evaluated) -> str:
    return losses.shown((of.perplexity, of.perplexity_error))


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        ((16.754, 0.348), "16.75 ± 0.35"),
        ((1234.5, 31.2), "1234 ± 31"),
        ((0.05712, 0.00406), "0.0571 ± 0.0041"),
        ((1.0, 0.0), "1 ± 0"),
        ((1.98e-13, 1.53e-13), "1.98e-13 ± 1.5e-13"),
        ((math.inf, math.inf), "inf ± inf"),
    ],
)
def test_a_figure_has_two_digits_of_its_error(figure: tuple[float, float], text: str) -> None:
    assert losses.shown(figure) == text


def test_eval_takes_several_variants(invoke: Invoke, demo: Path, text: Path) -> None:
    both = ("--variant", "onnx-f32", "--variant", "gguf-q4_k_m", "--variant", "onnx-f32")
    asked = ("eval", demo, "--text", text, "--limit", 40, "--threads", 1, "--context", CONTEXT)
    code, out, err = invoke(*asked, *both, "--against-variant", "gguf-f32", "--json")
    assert (code, err) == (0, "")
    reports = json.loads(out)["variants"]
    assert [each["model"]["setup"]["variant"] for each in reports] == ["onnx-f32", "gguf-q4_k_m"]
    assert {each["against"]["other"]["setup"]["variant"] for each in reports} == {"gguf-f32"}
    exact, small = (each["against"]["kl"] for each in reports)
    assert abs(exact) < 1e-6 < small
    code, out, err = invoke(*asked, *both, "--against-variant", "gguf-f32")
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines() if "on cpu " in line]
    assert names == ["onnx-f32", "gguf-q4_k_m", "gguf-f32,"]
    assert out.count("gguf-q4_k_m ") == 3  # by itself, against the other, and against the source


def test_all_variants_are_those_that_can_run_here(invoke: Invoke, demo: Path, text: Path) -> None:
    asked = ("eval", demo, "--text", text, "--limit", 20, "--threads", 1, "--variant", "all", "--kv-cache", "f16")
    code, out, err = invoke(*asked, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [each["model"]["setup"]["backend"] for each in report["variants"]] == ["gguf"] * len(report["variants"])
    assert "not in f16" in report["left_out"]["onnx-f32"]
    assert {*report["left_out"]} | {each["model"]["setup"]["variant"] for each in report["variants"]} == {
        *EXACT,
        *SMALL.values(),
    }
    code, out, err = invoke(*asked)
    assert "onnx-f32 was left out: " in out
    code, out, err = invoke(*asked, "--backend", "onnx")
    assert (code, out) == (1, "")
    assert "not in f16" in err


@pytest.mark.parametrize("by", [("--against-variant", "gguf-f32"), ("--against-backend", "onnx"), ("--against",)])
def test_eval_against_on_the_command_line(by: tuple[str, ...], invoke: Invoke, demo: Path, text: Path) -> None:
    asked = (
        "eval",
        demo,
        "--text",
        text,
        "--threads",
        1,
        "--variant",
        "gguf-q4_k_m",
        *(by if len(by) == 2 else (*by, demo)),
    )
    code, out, err = invoke(*asked)
    assert (code, err) == (0, "")
    for name in ("Against demo.edgepack", "KL (nats)", "top-1 agrees", "bits per byte"):
        assert name in out
    code, out, _ = invoke(*asked, "--json")
    against = json.loads(out)["variants"][0]["against"]
    figures = {"kl", "top1", "perplexity_ratio"}
    assert set(against) == {"other"} | figures | {f"{name}_error" for name in figures}
    asked_for = {"gguf-f32": ["gguf-f32"], "onnx": ["onnx-int4_mixed"]}
    # Without a word, what the plan chooses by the speed of this processor.
    assert against["other"]["setup"]["variant"] in asked_for.get(by[-1], ["gguf-q4_k_m", "onnx-int4_mixed"])


def test_compare_on_the_command_line(invoke: Invoke, demo: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is edgepack?\nTell me a story about a dog and a cat.\n")
    asked = (
        "compare",
        demo,
        demo,
        "--variant-a",
        "gguf-f32",
        "--variant-b",
        "onnx-int4_mixed",
        "--prompts",
        prompts,
        "--threads",
        1,
    )
    code, out, err = invoke(*asked, "--max-tokens", 32)
    assert (code, err) == (0, "")
    for text in ("1. What is edgepack?", "2. Tell me", "A: demo.edgepack gguf-f32", "decode", "of 2 answers"):
        assert text in out
    code, out, err = invoke(*asked, "--max-tokens", 8, "--temperature", 0.5, "--seed", 3, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [pair["prompt"] for pair in report["pairs"]] == prompts.read_text().splitlines()
    assert report["pairs"][1]["b"]["sampling"]["seed"] == 3
    assert report["a"]["setup"]["variant"] == "gguf-f32"
    assert report["b"]["setup"]["variant"] == "onnx-int4_mixed"


@pytest.mark.parametrize(
    ("data", "named"),
    [(b"", "is empty"), (b"a \xff\xfe", "is not UTF-8: invalid start byte at byte 2"), (None, "read")],
)
def test_a_file_that_cannot_be_read_ends_with_2(data: bytes | None, named: str, invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    if data is not None:
        path.write_bytes(data)
    for asked in (("eval", "nowhere", "--text", path), ("compare", "nowhere", "nowhere", "--prompts", path)):
        code, out, err = invoke(*asked)
        assert (code, out) == (2, "")
        assert f"error: {path}" in err
        assert named in err


def test_a_byte_order_mark_is_no_text(invoke: Invoke, demo: Path, tmp_path: Path) -> None:
    found = []
    for name, data in (("plain", b"the cat sat"), ("marked", b"\xef\xbb\xbfthe cat sat")):
        (tmp_path / name).write_bytes(data)
        found.append(invoke("eval", demo, "--text", tmp_path / name, "--variant", "gguf-f32", "--threads", 1, "--json"))
    assert found[0] == found[1]
