"""A runtime's probe in a child process: whatever it does to itself is a reason, and what it found is remembered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import broken_runtimes
import pytest
import small_bundle

import edgepack
from edgepack import fake, runtime
from edgepack.cli.doctor import show
from edgepack.device import state
from edgepack.device.engine import Rate, Speed
from edgepack.device.hardware import Hardware
from edgepack.engines import probe_all
from edgepack.isolation import probing, process, timing
from edgepack.measuring.doctor import doctor
from edgepack.runtime import Support
from edgepack_runtimes.gguf import GgufRuntime, selfcheck

HARDWARE = Hardware("linux", "x86_64", 2, 2, None, 1 << 30, 1 << 29)
SOUND = Support(("cpu",), version="1", kv_caches=("f16", "f32"))


@pytest.fixture(autouse=True)
def metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The broken runtimes, registered, in a process and with a state folder that know nothing yet."""
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    monkeypatch.setenv(broken_runtimes.ASKED, str(tmp_path / "asked"))
    monkeypatch.setattr(timing, "find", lambda name, now, hardware, schemes: None)
    forget(monkeypatch)
    return broken_runtimes.register(tmp_path / "site", monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be another process."""
    monkeypatch.setattr(probing, "_answers", {})
    monkeypatch.setattr(selfcheck, "_verdicts", {})


def times_asked(tmp_path: Path) -> int:
    return len((tmp_path / "asked").read_text().splitlines())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("aborts", "The probe of aborts was ended by SIGABRT: engine.c:7: ENGINE_ASSERT(sound) failed."),
        ("segfaults", "The probe of segfaults was ended by SIGSEGV."),
        ("illegal", "The probe of illegal used instructions that this processor lacks (SIGILL)."),
        ("exits", "The probe of exits ended without a valid answer."),
        ("exits-with-code", "The probe of exits-with-code ended by itself with exit code 3."),
        ("lies", "The probe of lies ended without a valid answer."),
        ("raises", "the runtime cannot be used: libengine.so: undefined symbol"),
        ("absent", "the runtime cannot be used: No module named 'no_such_module'"),
    ],
)
def test_a_broken_probe_is_a_reason(name: str, reason: str) -> None:
    support = probing.probe(name, HARDWARE)
    assert support.devices == ()
    assert support.reason == reason
    assert support.install is None


def test_a_probe_that_hangs_is_ended() -> None:
    support = probing.probe("hangs", HARDWARE, timeout_s=1.5)
    assert support == Support((), reason="The probe of hangs did not end within 1.5 s.")


def test_a_malformed_entry_point_is_a_reason() -> None:
    support = probing.probe("malformed", HARDWARE)
    assert support.devices == ()
    assert support.reason


def test_an_extra_of_edgepack_that_cannot_be_imported_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> fake.FakeRuntime:
        raise ImportError("libengine.so is missing")

    assert probing.ask("onnx", find, HARDWARE).install == "pip install 'edgepack[onnx]'"


def test_what_an_engine_prints_is_not_its_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert probing.probe("chatters", HARDWARE) == SOUND
    assert capfd.readouterr() == ("", "")


def test_a_plan_gives_the_reason_and_goes_on(tmp_path: Path) -> None:
    variants = [small_bundle.variant("aborts-q4"), small_bundle.variant("sound-q4")]
    plan = edgepack.plan(small_bundle.write(tmp_path / "two", variants))
    assert plan.choice.variant == "sound-q4"
    assert "SIGABRT" in plan.candidates[1].reason


def test_a_runtime_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [probing.probe("sound", HARDWARE) for _ in range(3)] == [SOUND] * 3
    assert times_asked(tmp_path) == 1
    forget(monkeypatch)
    assert probing.probe("sound", replace(HARDWARE, memory_available=7)) == SOUND
    assert times_asked(tmp_path) == 1


def test_only_that_it_can_run_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        probing.probe("raises", HARDWARE)
    assert times_asked(tmp_path) == 1
    forget(monkeypatch)
    probing.probe("raises", HARDWARE)
    assert times_asked(tmp_path) == 2


def reinstall(metadata: Path, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    os.utime(metadata, ns=(1, 1))
    return HARDWARE


def upgrade(metadata: Path, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    metadata.rename(metadata.parent / "broken_runtimes-1.1.dist-info")
    return HARDWARE


def edit(metadata: Path, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    (metadata.parent / "broken_runtimes.py").write_text(Path(broken_runtimes.__file__).read_text())
    return HARDWARE


def see_a_gpu(metadata: Path, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    return replace(HARDWARE, accelerators=("cuda",))


def hide_a_gpu(metadata: Path, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return HARDWARE


def install_something(metadata: Path, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    (metadata.parent / "engine-2.0.dist-info").mkdir()
    return HARDWARE


def test_it_is_asked_again_when_something_changes(
    tmp_path: Path, metadata: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probing.probe("sound", HARDWARE)
    for count, change in enumerate((reinstall, edit, see_a_gpu, hide_a_gpu, install_something, upgrade), 2):
        assert probing.probe("sound", change(metadata, monkeypatch)) == SOUND
        assert times_asked(tmp_path) == count, change.__name__


def test_what_computes_on_the_cpu_comes_with_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = Speed(2, {"q4": Rate(1.0, 2.0)}, Rate(3.0, 4.0))
    asked: list[tuple[str, frozenset[str]]] = []

    def find(name: str, now: str, hardware: Hardware, schemes: Collection[str]) -> Speed:
        asked.append((name, frozenset(schemes)))
        return speed

    monkeypatch.setattr(timing, "find", find)
    for _ in range(2):
        assert probing.probe("sound", HARDWARE, schemes=("q4",)) == replace(SOUND, speed=speed)
    assert probing.probe("absent", HARDWARE, schemes=("q4",)).speed is None
    assert probe_all(HARDWARE, ("sound",), schemes={"sound": {"q4"}, "absent": {"q5"}})["sound"].speed == speed
    assert asked == [("sound", frozenset({"q4"}))]


def test_no_speed_is_measured_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "find", lambda *arguments: pytest.fail("a speed was measured"))
    assert probing.probe("sound", HARDWARE) == SOUND
    assert all(support.speed is None for support in probe_all(HARDWARE, ("sound", "absent")).values())
    monkeypatch.setattr(runtime, "names", lambda: ["absent", "sound"])
    report = doctor()
    assert ([support.speed for support in report.runtimes.values()], report.types) == ([None, None], {})


def test_doctor_tells_what_plans_had_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {"q4_0": Rate(1e-9, 4e-9), "q3_k": Rate(2.1e-9, 8.4e-9)}
    monkeypatch.setattr(runtime, "names", lambda: ["absent", "sound"])
    monkeypatch.setattr(timing, "known_rates", lambda name, now: rates)
    report = doctor()
    assert report.types == {"sound": {"q4_0": 1.0, "q3_k": pytest.approx(2.1)}}
    show(report)
    assert "sound types   time of an answer: q4_0 1.0x, q3_k 2.1x" in capsys.readouterr().out


def test_a_damaged_memory_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probing.probe("sound", HARDWARE)
    (finding,) = (tmp_path / "state" / "findings").iterdir()
    sound = finding.read_bytes()
    damaged = [b"", b"\xff", b"{}", sound[:-1], sound.replace(b'"cpu"', b"5"), sound.replace(b'":"', b'":"0', 1)]
    for count, content in enumerate(damaged, 2):
        finding.write_bytes(content)
        forget(monkeypatch)
        assert probing.probe("sound", HARDWARE) == SOUND
        assert times_asked(tmp_path) == count, content
        assert finding.read_bytes() == sound


def test_a_state_folder_that_cannot_be_used_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file" / "below"), "\udcff\0"):
        monkeypatch.setattr(state, "state_folder", lambda place=place: Path(place))
        forget(monkeypatch)
        assert probing.probe("sound", HARDWARE) == SOUND
    assert times_asked(tmp_path) == 2


def test_a_frozen_program_asks_in_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(process, "run", lambda *arguments, **named: pytest.fail("a child was started"))
    assert probing.probe("sound", HARDWARE) == SOUND
    assert "undefined symbol" in str(probing.probe("raises", HARDWARE).reason)


def test_an_interpreter_that_does_not_start_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "could not be started" in str(probing.probe("sound", HARDWARE).reason)


def test_runtimes_that_are_given_are_asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Here(fake.FakeRuntime):
        def probe(self, hardware: Hardware) -> Support:
            return Support(("cpu",), version=str(os.getpid()))

    monkeypatch.setattr(process, "run", lambda *arguments, **named: pytest.fail("a child was started"))
    assert probe_all(HARDWARE, runtimes={"here": Here()})["here"].version == str(os.getpid())


ASKING = """
from edgepack.device.hardware import detect
from edgepack.isolation import probing, process
from edgepack_runtimes.gguf import GgufRuntime, selfcheck
children, run = [], process.run
process.run = lambda what, *arguments, **named: children.append(what) or run(what, *arguments, **named)
if PROBED:
    assert probing.probe("gguf", detect()).devices
assert GgufRuntime().engine_version()
print(*children, sep=chr(10))
"""


@pytest.mark.parametrize(("probed", "child"), [(True, "The probe of gguf"), (False, "The selfcheck of xllamacpp")])
def test_the_probe_of_gguf_proves_the_engine_for_the_session_too(probed: bool, child: str) -> None:
    """In a process of its own: what it can import is what its children can, which this one's path may not say."""
    code = ASKING.replace("PROBED", str(probed))
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    (only,) = done.stdout.splitlines()
    assert only.startswith(child)


def test_a_child_of_the_probe_is_the_selfchecks_child_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probing.probe("tells", HARDWARE).version
    monkeypatch.setenv(probing.INSIDE, "1")
    monkeypatch.setattr(process, "run", lambda *arguments, **named: pytest.fail("a second child was started"))
    assert GgufRuntime().probe(HARDWARE).devices


def test_the_probes_of_the_engines_write_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert all(probing.probe(name, HARDWARE).devices for name in ("gguf", "mlx", "onnx"))
    assert list(home.rglob("*")) == []
    assert len(list((tmp_path / "state").rglob("*.json"))) == 4  # and the selfcheck's
