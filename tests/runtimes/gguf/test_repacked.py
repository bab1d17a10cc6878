"""Rearranged weights are used where a child process computed with them: engines that crash with them, or compute
something else, have the weights as stored. The engine is real; what its rearranged weights give is a stand-in's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from models import make_llama
from variants import pack, start

from edgepack.bundle.decoder import Decoder
from edgepack.device.state import circumstances
from edgepack.errors import UsageError
from edgepack.isolation import process
from edgepack.runtime import Options
from edgepack_runtimes.gguf import GgufRuntime, library, log, made, repacked, repacking
from edgepack_runtimes.gguf.load import open_session
from edgepack_runtimes.scratch import held

CHILD = """
import os, signal, sys
from dataclasses import replace
from edgepack_runtimes.gguf import repacking

opened = repacking.open_session

def open_session(library, path, decoder, options):
    session = opened(library, path, decoder, replace(options, repack=False))
    if options.repack:
        forward = session.forward_all
        session.forward_all = lambda ids: FAULT
    return session

repacking.open_session = open_session
sys.exit(repacking.main())
"""
WORKS = "forward(ids)"
CRASHES = "os.kill(os.getpid(), signal.SIGSEGV)"
COMPUTES_WRONGLY = "forward(ids)[:, ::-1]"
IS_KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
LACKS_SOMETHING = "int('no memory')"

Child = Callable[[str], None]


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decoder]:
    folder = tmp_path_factory.mktemp("repacked")
    return folder / "q4_0", pack(
        "gguf", make_llama(folder / "source", hidden=256, intermediate=512), folder / "q4_0", "q4_0"
    )


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Child:
    """Let another child find out, in a program that knows nothing yet."""
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(tmp_path)

    def put(fault: str) -> None:
        (tmp_path / "stand_in.py").write_text(CHILD.replace("FAULT", fault))
        monkeypatch.setattr(repacked, "_CHILD", "stand_in")
        monkeypatch.setattr(repacked, "_trials", {})

    return put


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let a program that knows nothing begin, in which no child may be asked."""

    def forbid() -> None:
        monkeypatch.setattr(repacked, "_trials", {})
        monkeypatch.setattr(process, "run", lambda *arguments, **limits: pytest.fail("a child was asked"))

    return forbid


def engine() -> library.Engine:
    return GgufRuntime()._library().engine


def rearranged(variant: tuple[Path, Decoder], repack: bool | None = None) -> bool:
    with log.lines() as lines:
        session = start("gguf", *variant, repack=repack)
    session.close()
    return repacks(lines)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "rearranged" in line]


def repacks(lines: list[str]) -> bool:
    return any("model buffer" in line and ("REPACK" in line or "AMX" in line) for line in lines)


def test_the_model_of_the_trial_is_one_that_is_rearranged(variant: tuple[Path, Decoder], child: Child) -> None:
    child(WORKS)
    options = Options(context=64, threads=1, kv_cache="f32", repack=True)
    with held(made.model(repacking._DECODER, repacking._filled)) as path, log.lines() as lines:
        open_session(library.load(engine()), path, repacking._DECODER, options).close()
    assert repacks(lines) == rearranged(variant, repack=True)


def test_an_engine_that_computes_with_them_has_them(
    variant: tuple[Path, Decoder], child: Child, no_child: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    child(WORKS)
    caplog.set_level(logging.WARNING, logger="edgepack.gguf")
    by_rule = rearranged(variant)
    assert warnings(caplog) == []
    assert by_rule == rearranged(variant, repack=True)
    no_child()  # in the next program it is known
    assert by_rule == rearranged(variant)


def test_the_wheel_passes_the_trial_itself() -> None:
    assert process.run("its trial", repacked._CHILD, "xllamacpp", timeout_s=60) == b'{"reason":null}'


@pytest.mark.parametrize(
    ("fault", "said"),
    [(CRASHES, "its trial was ended by SIGSEGV."), (COMPUTES_WRONGLY, "its trial gives wrong logits, NMSE ")],
)
def test_an_engine_that_fails_with_them_has_the_weights_as_stored(
    fault: str,
    said: str,
    variant: tuple[Path, Decoder],
    child: Child,
    no_child: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    child(fault)
    caplog.set_level(logging.WARNING, logger="edgepack.gguf")
    assert not rearranged(variant)
    assert not rearranged(variant)
    (told,) = warnings(caplog)
    assert told.startswith(f"{engine().distribution} {engine().version} cannot be trusted with rearranged weights on")
    assert said in told
    assert told.endswith(". The weights stay as they are stored.")
    no_child()  # in the next program it is known
    assert not rearranged(variant)
    with pytest.raises(UsageError) as refused:
        rearranged(variant, repack=True)
    assert said in refused.value.message
    assert "repack=False" in (refused.value.hint or "")
    assert not rearranged(variant, repack=False)


@pytest.mark.parametrize("fault", [IS_KILLED, LACKS_SOMETHING])
def test_what_the_system_did_to_the_child_is_not_remembered(
    fault: str, variant: tuple[Path, Decoder], child: Child
) -> None:
    child(fault)
    assert not rearranged(variant)
    child(WORKS)
    assert repacked.reason(engine()) is None


@pytest.mark.parametrize("kept", [b"{}", b'{"reason":null,"since":1}', b'{"reason":3}', b"null"])
def test_what_another_version_remembered_is_asked_again(kept: bytes, child: Child) -> None:
    child(CRASHES)
    question = f"rearranged weights of {engine().distribution}"
    where = Path(repacked.__file__).parent.glob("*.py")
    now = circumstances(repacked.stamps([library.locate(engine()), *where]))
    repacked.remember(question, now, kept)
    assert "SIGSEGV" in (repacked.reason(engine()) or "")
    repacked.remember(question, now, b'{"reason":null}')  # as this version writes it
    child(CRASHES)
    assert repacked.reason(engine()) is None


def test_a_program_without_an_interpreter_takes_no_risk(
    variant: tuple[Path, Decoder], child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(WORKS)
    monkeypatch.setattr(process, "can_start", lambda: False)
    assert not rearranged(variant)
    with pytest.raises(UsageError, match="cannot start the interpreter"):
        rearranged(variant, repack=True)


def test_weights_as_stored_need_no_proof(
    variant: tuple[Path, Decoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repacked, "reason", lambda engine: pytest.fail("it was asked"))
    assert not rearranged(variant, repack=False)
    other = tmp_path / "q4_k_m"
    decoder = pack("gguf", make_llama(tmp_path / "source", hidden=256, intermediate=512), other, "q4_k_m")
    assert not rearranged((other, decoder))
