"""``--plot``: a picture beside a report, and nothing measured for one that cannot be written."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgepack.cli import main, plot
from edgepack.errors import UsageError
from edgepack.measuring.picture import Bar, Panel
from edgepack_packager.build import Built

FEW = ("--prompt-tokens", "8", "--decode-tokens", "4", "--repeats", "2")


def texts(path: Path) -> set[str]:
    return {each.text or "" for each in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")}


def test_a_bench_and_an_evaluation_are_drawn(
    demo_bundle: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, bench, quality = str(demo_bundle.path), tmp_path / "bench.svg", tmp_path / "quality.svg"
    assert main(["bench", bundle, "--variant", "gguf-q4_k_m", *FEW, "--plot", str(bench)]) == 0
    assert {"tokens a second", "prefill", "decode", "between tokens, p95"} <= texts(bench)
    (tmp_path / "text.txt").write_text("What is edgepack? Edgepack is a tool that packs small language models.")
    names = [each.id for each in demo_bundle.manifest.variants]
    asked = ["eval", bundle, "--text", str(tmp_path / "text.txt"), "--variant", "all", "--against-variant", names[0]]
    assert main([*asked, "--plot", str(quality)]) == 0
    assert {"perplexity", "KL divergence from the other, nats", *names[1:]} <= texts(quality)
    assert "Drawn: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.png", "no/a.svg", "folder.svg"])
def test_what_cannot_be_written_is_refused_first(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(UsageError, match=r"--plot"):
        plot.check(tmp_path / name)
    plot.check(tmp_path / "a.svg")
    plot.write(tmp_path / "a.svg", "title", [Panel("unit", [Bar("a", 1.0)])])
    assert "title" in texts(tmp_path / "a.svg")
