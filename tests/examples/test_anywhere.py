"""The app that moves: one string, the same conversation."""

from __future__ import annotations

from pathlib import Path

import programs
from serving import serving_bundles

QUESTIONS = ("What is a token?", "What is edgepack?", "word " * 5000)


def test_a_bundle_and_a_server_give_the_same_conversation(one_variant: Path) -> None:
    here = programs.run("anywhere.py", one_variant, *QUESTIONS)
    with serving_bundles(f"demo={one_variant}") as served:
        there = programs.run("anywhere.py", served.url, *QUESTIONS)
        named = programs.run("anywhere.py", f"{served.url}#demo", *QUESTIONS)
        unknown = programs.run("anywhere.py", f"{served.url}#other", *QUESTIONS)
        assert there.stderr == named.stderr == f"[demo on {served.url}, edgepack]\n"
    assert "A token is a small piece of text" in here.stdout
    assert here.stdout.endswith("\nThat is too long for me.\n")
    assert (here.stdout, here.returncode) == (there.stdout, there.returncode) == (named.stdout, 0)
    assert here.stderr == "[onnx-int4_mixed on this device, onnx]\n"
    assert (unknown.returncode, "'other' is not served here" in unknown.stderr) == (1, True)
    assert "Traceback" not in unknown.stderr


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    ended = programs.run("anywhere.py", "http://127.0.0.1:9", "What is a token?")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "127.0.0.1 cannot be reached. Is it started, and its address right?\n"
