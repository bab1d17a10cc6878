"""``edgepack bench URL`` and ``edgepack compare BUNDLE URL``, and what of each a server cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Serving, serving

import edgepack
from edgepack import fake
from edgepack.cli import main
from edgepack.measuring.compare import compare
from edgepack.measuring.served import bench_served

SAYS = "Good day to you all!"


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with serving({"fake": lambda: fake.model(says=SAYS)}) as running:
        yield running


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_bench_measures_what_reaches_this_machine(served: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", served.url, "--repeats", "2", "--prompt-tokens", "10", "--decode-tokens", "12"]
    code, report = ran(capsys, *words)
    assert code == 0
    assert report["served"] == {
        "url": served.url, "server": "edgepack", "version": "0.1.0", "model": "fake", "context": 4096,
    }  # fmt: skip
    assert (report["answer_tokens"], report["repeats"]) == (12, 2)
    assert report["prompt_tokens"] > 10
    assert 0 < report["ttft_s"]["median"] <= report["answer_s"]["median"]
    assert report["decode_tps"]["median"] > 0
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "time to first token" in shown
    assert f"fake, edgepack 0.1.0 at {served.url}" in shown


@pytest.mark.parametrize("option", [["-b", "gguf"], ["--context", "512"], ["--threads", "2"], ["--variant", "x"]])
def test_what_a_server_settles_is_refused_by_name(
    served: Serving, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    code, report = ran(capsys, "bench", served.url, *option)
    assert code == 2
    assert report["error"]["message"].endswith(" was given, and what answers is a server.")


def test_a_model_that_is_on_no_server_is_not_benched_as_one() -> None:
    with fake.model() as model, pytest.raises(edgepack.UsageError, match="on no server"):
        bench_served(model)


def test_compare_puts_a_bundle_and_a_server_side_by_side(served: Serving) -> None:
    found = compare(
        lambda: fake.model(says=SAYS),
        lambda: edgepack.connect(served.url),
        ["Hello", [{"role": "user", "content": "Hi"}]],
    )
    assert found.identical == 2
    assert found.a.setup is not None
    assert found.b.setup is None
    assert found.b.served is not None
    assert {pair.common_tokens for pair in found.pairs} == {None}
    assert all(pair.b.repro is None and pair.a.repro is not None for pair in found.pairs)
    json.dumps(found.to_dict())


def test_compare_shows_what_it_cannot_compare(
    served: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello\n", encoding="utf-8")
    assert main(["compare", served.url, served.url, "--prompts", str(prompts)]) == 0
    shown = capsys.readouterr().out
    assert "texts are compared, and not tokens" in shown
    assert "1 of 1 answers are the same" in shown
    code, report = ran(capsys, "compare", served.url, served.url, "--prompts", str(prompts), "--threads", "2")
    assert (code, report["error"]["message"]) == (2, "--threads was given, and what answers are servers.")
