"""The batch job: whatever ends it and wherever, the next run makes the same file."""

from __future__ import annotations

import fcntl
import json
import resource
import signal
import subprocess
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import programs
import pytest

from edgepack import EngineError, fake, load

STORY = {"messages": [{"role": "user", "content": "Tell me a story."}], "temperature": 1.0, "max_tokens": 60}
WRONG = {"messages": [{"role": "king", "content": "Obey."}]}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of questions; two lines of it cannot be honoured."""
    file = tmp_path_factory.mktemp("batch") / "questions.jsonl"
    lines = [*map(json.dumps, [STORY] * 4), "no JSON", json.dumps(WRONG), *map(json.dumps, [STORY] * 6)]
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def whole(one_variant: Path, questions: Path) -> bytes:
    """The answers of a job that ran through."""
    answers = questions.with_name("whole.jsonl")
    ended = programs.run("batch.py", one_variant, questions, answers, "--seed", 7)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr == "12 questions, 0 of them answered before, 2 refused.\n"
    return answers.read_bytes()


def rows(answers: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answers.splitlines()]


def test_each_question_has_its_answer_and_its_seed(whole: bytes, one_variant: Path) -> None:
    found = rows(whole)
    assert [row["number"] for row in found] == list(range(1, 13))
    assert [row["number"] for row in found if "error" in row] == [5, 6]
    assert "JSON is malformed" in found[4]["error"]
    assert "messages[0].role is 'king'" in found[5]["error"]
    assert len({row["text"] for row in found if "text" in row}) == 10  # the same question, other seeds
    with load(one_variant, variant=found[11]["variant"]) as model:
        assert model.chat(**STORY, seed=7 + 12).text == found[11]["text"]


@pytest.mark.parametrize("left", ["half a line", "a line", "all but a byte", "all"])
def test_a_file_that_ends_anywhere_is_gone_on_with(
    left: str, whole: bytes, one_variant: Path, questions: Path, tmp_path: Path
) -> None:
    line = whole.index(b"\n") + 1
    cut = {"half a line": line // 2, "a line": line, "all but a byte": -1, "all": len(whole)}
    answers = tmp_path / "answers.jsonl"
    answers.write_bytes(whole[: cut[left]])
    before = answers.read_bytes().count(b"\n")
    ended = programs.run("batch.py", one_variant, questions, answers, "--seed", 7)
    assert (ended.returncode, answers.read_bytes()) == (0, whole)
    assert ended.stderr.startswith(f"12 questions, {before} of them answered before, ")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_job_that_is_ended_is_gone_on_with(
    end: signal.Signals, whole: bytes, one_variant: Path, questions: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers.jsonl"
    command = programs.command("batch.py", one_variant, questions, answers, "--seed", 7)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        deadline = monotonic() + 60
        while not (answers.exists() and answers.read_bytes().count(b"\n")):
            assert job.poll() is None
            assert monotonic() < deadline
            sleep(0.001)
        job.send_signal(end)
        _, said = job.communicate(timeout=60)
    if end == signal.SIGINT:
        assert (job.returncode, said) == (1, "Stopped. The same command goes on from here.\n")
    else:
        assert job.returncode == -signal.SIGKILL
    assert answers.read_bytes() != whole
    assert programs.run("batch.py", one_variant, questions, answers, "--seed", 7).returncode == 0
    assert answers.read_bytes() == whole


def test_answers_to_something_else_are_left_alone(
    whole: bytes, one_variant: Path, questions: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_bytes(whole[:-9])
    ended = programs.run("batch.py", one_variant, questions, answers, "--seed", 8)
    assert (ended.returncode, answers.read_bytes()) == (1, whole[:-9])
    assert ended.stderr.startswith(f"{answers} answers other questions")


@pytest.mark.parametrize("held", ["one line of something", '{"messages": []}\n', '{"number":1}\n', "{}"])
def test_a_file_of_something_else_is_left_alone(held: str, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(held)
    with open(answers, "a+b") as file, pytest.raises(SystemExit) as end:
        programs.load("batch.py").answered(file)
    assert end.value.code == f"{answers} holds something else than answers. Name another file."
    assert answers.read_text() == held


def test_a_second_job_is_refused(one_variant: Path, questions: Path, tmp_path: Path) -> None:
    with open(tmp_path / "answers.jsonl", "ab") as answers:
        fcntl.flock(answers, fcntl.LOCK_EX)
        ended = programs.run("batch.py", one_variant, questions, answers.name)
    assert (ended.returncode, ended.stderr) == (1, f"{answers.name} is being written by another job.\n")
    assert not Path(answers.name).read_bytes()


def test_a_disk_that_is_full_is_said_and_gone_on_from(
    whole: bytes, one_variant: Path, questions: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers.jsonl"
    room = whole.index(b"\n") + 30

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = programs.command("batch.py", one_variant, questions, answers, "--seed", 7)
    ended = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "[Errno 27] File too large\n")
    assert answers.read_bytes() == whole[:room]
    assert programs.run("batch.py", one_variant, questions, answers, "--seed", 7).returncode == 0
    assert answers.read_bytes() == whole


def test_an_engine_that_fails_answers_no_question(tmp_path: Path) -> None:
    batch, asked = programs.load("batch.py"), [json.dumps({**STORY, "temperature": 0}).encode()] * 3
    with open(tmp_path / "answers.jsonl", "a+b") as file:
        with fake.model(says="Yes.", fail_at=8) as model, pytest.raises(EngineError):
            batch.run(model, asked, [], file, 0)
        done = batch.answered(file)
        assert [(row.number, row.text) for row in done] == [(1, "Yes.")]
        with fake.model(says="Yes.") as model:
            assert batch.run(model, asked, done, file, 0) == "3 questions, 1 of them answered before, 0 refused."
