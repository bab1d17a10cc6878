"""A build that is killed at any of its file-system calls, or one of whose calls fails: what has the bundle's name is
whole, an error is a sentence, and the next build finds nothing in its way.

The faults begin where a build begins to write. What is killed inside a call that only reads leaves what the call before
it left, so that a kill is tried at every call that changes something.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from limited import Ended, in_child
from models import make_llama
from traced import READING, WRITING, counts, record, run_traced, traced

from edgepack.bundle import work
from edgepack.bundle.files import open_bundle
from edgepack.cli.interrupts import Interrupts
from edgepack.isolation import probing
from edgepack.runtime import Support
from edgepack_packager import build as building
from edgepack_packager.recipe import Recipe

pytestmark = pytest.mark.hostile

FULL = ("ENOSPC", "EROFS")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("faults") / "model", layers=1)


@pytest.fixture
def write(source: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Callable[[], object]]:
    """What a build does from its first write on, to be called in another process. Nothing is proven by an engine."""
    monkeypatch.setattr(probing, "probe", lambda name, machine, **asked: Support((), reason="it is not asked"))
    recipe = Recipe(("gguf",), ("q8",), unproven=True)
    ready = building.prepare(str(source), recipe, source.parent / "out", building.Silent())

    def to(out: Path) -> Callable[[], object]:
        made = building.replace(ready, out=out, failed=out.with_suffix(".failed"))
        monkeypatch.setattr(building, "prepare", lambda *arguments: made)
        return lambda: building.build(str(source), recipe, out).id

    return to


def points(found: dict[str, int], names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for name in names:
        yield from ((name, n) for n in range(1, found.get(name, 0) + 1))


def check(out: Path, ended: Ended, fault: str) -> list[str]:
    """Return what is wrong after a fault."""
    wrong = []
    if out.exists():
        try:
            open_bundle(out, verify="full")
        except Exception as error:
            wrong.append(f"{fault}: what is there is not whole: {error}")
    elif ended.kind == "answer":
        wrong.append(f"{fault}: it said that there is a bundle")
    if not ended.clean and ended.kind != "signal SIGKILL":
        wrong.append(f"{fault}: {ended.kind}: {ended.text}")
    if (
        ended.clean
        and ended.kind != "answer"
        and ("Errno" in ended.text or ("is sealed, and" in ended.text) != out.exists())
    ):
        wrong.append(f"{fault}: {ended.text}")
    try:
        with work.folder(out):
            pass
    except work.OutputExistsError:
        pass
    evidence = "out.failed" if ended.kind == "VariantsFailedError" else None
    left = [path.name for path in out.parent.iterdir() if path != out and path.name != evidence]
    return wrong + ([f"{fault}: {left} is left"] if left else [])


def test_whatever_happens_to_a_call_there_is_a_whole_bundle_or_none(
    write: Callable[[Path], Callable[[], object]], tmp_path: Path, portion: Callable[[int], int]
) -> None:
    log = tmp_path / "calls"
    assert run_traced(write(tmp_path / "dry" / "out"), log).kind == "answer"
    found = counts(record(log))
    faults = [f"{name}:signal=KILL:when={n}" for name, n in points(found, WRITING)]
    faults += [f"{name}:error={error}:when={n}" for error in FULL for name, n in points(found, WRITING)]
    faults += [f"{name}:error=EIO:when={n}" for name, n in points(found, (*WRITING, *READING))]
    assert len(faults) > 300
    wrong = []
    some = portion(len(faults))
    for number, fault in enumerate(itertools.islice(faults, 0, None, max(1, len(faults) // some))):
        out = tmp_path / str(number) / "out"
        wrong += check(out, run_traced(write(out), log, fault), fault)
    assert not wrong, "\n".join(wrong)
    assert in_child(write(tmp_path / "0" / "again")).kind == "answer"
    assert os.listdir(tmp_path / "dry") == ["out"]


@pytest.mark.usefixtures("hangup")
def test_a_hangup_at_any_call_is_cleaned_up_after(
    write: Callable[[Path], Callable[[], object]], tmp_path: Path, portion: Callable[[int], int]
) -> None:
    def hearing(work: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with Interrupts():
                return work()

        return run

    log = tmp_path / "calls"
    assert run_traced(write(tmp_path / "dry" / "out"), log).kind == "answer"
    faults = [f"{name}:signal=HUP:when={n}" for name, n in points(counts(record(log)), WRITING[:-2])]
    for number, fault in enumerate(itertools.islice(faults, 0, None, max(1, len(faults) // portion(len(faults))))):
        out = tmp_path / str(number) / "out"
        ended = in_child(hearing(traced(write(out), log, fault)), seconds=120)
        assert ended.kind in ("raw KeyboardInterrupt", "answer"), f"{fault}: {ended}"
        assert [path for path in out.parent.glob("*") if path != out] == [], fault
        assert out.exists() or ended.kind != "answer"
        if out.exists():
            open_bundle(out, verify="full")
