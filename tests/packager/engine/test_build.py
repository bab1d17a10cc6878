"""``edgepack engine build`` with tools that pretend: what is written, what is shown, and what a failure leaves."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from base64 import urlsafe_b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_sdist as sdist
import msgspec
import pytest

from edgepack.device.hardware import detect
from edgepack.errors import BuildError, EngineMissingError, OutputExistsError, UsageError
from edgepack_packager import programs
from edgepack_packager.engine import build as building
from edgepack_packager.engine import processors, sources, toolchain
from edgepack_packager.engine.wheel import Facts
from edgepack_runtimes.gguf import library

NAMED = "x86-64-v3"


class Watched:
    """What a build says of its progress."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.steps = 0

    def stage(self, title: str, total: int) -> None:
        self.stages.append((title, total))

    def advance(self, steps: int = 1) -> None:
        self.steps += steps

    def warn(self, sentence: str) -> None:
        raise AssertionError(sentence)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    archive = sdist.write(tmp_path / "sdist.tar.gz")
    monkeypatch.setattr(sources, "SHA256", sdist.digest(archive))
    use(monkeypatch, tmp_path)
    return archive


def use(monkeypatch: pytest.MonkeyPatch, folder: Path, **lines: str) -> None:
    tools = sdist.tools(folder, **lines)
    monkeypatch.setattr(toolchain, "find", lambda processor, hardware, asked: tools)


def made(source: Path, out: Path) -> Path:
    wheel = building.build(NAMED, source=source, out=out).wheel
    assert wheel is not None
    return wheel


def test_the_same_sources_and_flags_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    first, second = made(source, tmp_path / "a"), made(source, tmp_path / "b" / "c")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_the_wheel_is_what_its_record_says_and_carries_facts_and_licence(source: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(made(source, tmp_path / "out")) as wheel:
        names = wheel.namelist()
        record = next(name for name in names if name.endswith("/RECORD"))
        rows = list(csv.reader(io.StringIO(wheel.read(record).decode())))
        assert [row[0] for row in rows] == names
        for name, digest, size in rows[:-1]:
            data = wheel.read(name)
            assert hashlib.sha256(data).digest() == urlsafe_b64decode(digest.removeprefix("sha256=") + "=")
            assert len(data) == int(size)
        facts = msgspec.json.decode(wheel.read("edgepack_llama/build.json"), type=Facts)
        assert (facts.processor, facts.compiler, facts.sha256) == (NAMED, "cc 1.0", sources.SHA256)
        assert b"-march=x86-64-v3" in wheel.read("edgepack_llama/build.json")
        assert wheel.read(record.replace("RECORD", "licenses/LICENSE")) == sdist.FILES[f"{sdist.TREE}/LICENSE"]
        libraries = {name for name in names if name.startswith("edgepack_llama/lib/")}
        assert libraries == {"edgepack_llama/lib/libllama.so", "edgepack_llama/lib/libggml-base.so"}


def test_pip_installs_the_wheel(source: Path, tmp_path: Path) -> None:
    wheel = made(source, tmp_path / "out")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", tmp_path / "t", wheel]
    subprocess.run([*command, "-q"], check=True)
    assert (tmp_path / "t/edgepack_llama/lib/libllama.so").read_text() == "library llama\n"


def test_other_flags_make_another_version(source: Path, tmp_path: Path) -> None:
    others = {building.build(name, source=source, out=tmp_path / name).version for name in (NAMED, "x86-64-v4", "pi5")}
    assert len({version.partition(".g")[2] for version in others}) == 3
    assert all(version.startswith(f"{sources.VERSION}+") for version in others)


def test_progress_is_ninjas(source: Path, tmp_path: Path) -> None:
    watched = Watched()
    building.build(NAMED, source=source, out=tmp_path / "out", progress=watched)
    assert watched.stages == [("Unpacking", 1), ("Configuring llama.cpp", 1), ("Compiling llama.cpp", 3)]
    assert watched.steps == 3


def test_zigs_own_libraries_are_a_stage_before_cmake_asks_anything(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zig = tmp_path / "zig"
    zig.write_text('#!/bin/sh\ntest "$ZIG_VERBOSE_CC" || exit 3\nfor n in a b; do echo "zig clang $n.cpp"; done\n')
    zig.chmod(0o700)
    ready = replace(sdist.tools(tmp_path), compiler="zig", cxx=(str(zig), "c++"))
    monkeypatch.setattr(toolchain, "find", lambda processor, hardware, asked: ready)
    watched = Watched()
    building.build("pi5", source=source, out=tmp_path / "out", progress=watched)
    titles = [title for title, _ in watched.stages]
    assert titles == ["Unpacking", "Compiling zig's libraries", "Configuring llama.cpp", "Compiling llama.cpp"]
    assert watched.steps == 2 + 3


def test_a_relative_folder_gives_the_compiler_by_its_whole_path(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CMake takes no other, and says that the compiler is not there."""
    use(monkeypatch, tmp_path, cmake='case "$*" in *-DCMAKE_C_COMPILER=/*) ;; *) exit 3 ;; esac')
    monkeypatch.chdir(tmp_path)
    assert made(source, Path("out")).is_file()


@pytest.mark.parametrize("tool", ["cmake", "ninja"])
def test_a_failing_compiler_is_quoted_its_log_kept_and_nothing_else(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    use(
        monkeypatch,
        tmp_path,
        **{tool: "for n in 1 2 3 4 5; do echo line $n; done\necho 'x.cpp:1: fatal error' >&2\nexit 3"},
    )
    with pytest.raises(BuildError, match=r"x.cpp:1: fatal error") as error:
        building.build(NAMED, source=source, out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    log = tmp_path / "state" / "engine-build.log"
    assert str(log) in str(error.value)
    assert log.read_text().splitlines()[-6:] == [*(f"line {n}" for n in range(1, 6)), "x.cpp:1: fatal error"]


def test_a_wheel_that_is_there_stays(source: Path, tmp_path: Path) -> None:
    wheel = made(source, tmp_path / "out")
    wheel.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        building.build(NAMED, source=source, out=tmp_path / "out")
    assert wheel.read_bytes() == b"mine"


def test_an_interrupt_ends_the_compiler_and_leaves_nothing(tmp_path: Path) -> None:
    archive = sdist.write(tmp_path / "sdist.tar.gz")
    sdist.tools(tmp_path, ninja=f"echo $$ > {tmp_path}/pid; echo '[1/3] first'; exec sleep 600")
    program = f"""\
        from pathlib import Path
        import engine_sdist as sdist
        from edgepack.cli import main
        from edgepack_packager.engine import sources, toolchain
        sources.SHA256 = {sdist.digest(archive)!r}
        ready = sdist.Toolchain("system", "cc 1.0", ("cc",), ("cc",), "{tmp_path}/cmake", "{tmp_path}/ninja", "any")
        toolchain.find = lambda *given: ready
        given = ["--for", "pi5", "--source", {str(archive)!r}, "--out", "{tmp_path}/out"]
        raise SystemExit(main(["engine", "build", *given]))
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, "PYTHONPATH": path}
    ) as child:
        try:
            while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().strip():
                assert child.poll() is None
            os.kill(child.pid, signal.SIGINT)
            assert child.wait(60) == 130
        finally:
            child.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not list((tmp_path / "out").iterdir())


def test_an_engine_for_this_machine_is_built_away_from_the_users_folders(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[str] = []
    monkeypatch.setattr(building, "_install", lambda wheel: installed.append(wheel.name))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    built = building.build(source=source)
    assert (built.wheel, built.installed, len(installed)) == (None, True, 1)
    assert sorted(tmp_path.iterdir()) == before
    assert not list(Path(tempfile.gettempdir()).glob(f".{installed[0]}*"))


def test_names_of_processors_are_known_or_refused() -> None:
    with pytest.raises(UsageError, match="pi6"):
        building.build("pi6")
    machine = detect()
    assert [processors.find(name, machine).name for name in processors.NAMES] == list(processors.NAMES)


@pytest.mark.skipif(detect().system == "darwin", reason="a Mac compiles for Apple")
def test_apples_engine_is_for_a_mac_to_compile() -> None:
    with pytest.raises(UsageError, match="macOS alone"):
        building.build("apple")
    with pytest.raises(UsageError, match="Apple's alone"):
        building.build(accelerators=frozenset({"metal"}))


def test_an_accelerator_without_its_kit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EngineMissingError, match="nvcc is not on PATH"):
        building.build(accelerators=frozenset({"cuda"}))
    other = "pi5" if detect().machine == "x86_64" else NAMED
    with pytest.raises(UsageError, match="the kit of the machine itself"):
        building.build(other, accelerators=frozenset({"vulkan"}))


def test_without_tools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(EngineMissingError, match="cmake") as error:
        building.build()
    assert toolchain.INSTALL in str(error.value)


def test_zig_gets_the_variants_of_arm_as_it_knows_them(tmp_path: Path) -> None:
    """ggml's CMake asks for ``-march=armv8.2-a+...``, which is the name of no processor to zig."""
    cc = toolchain.wrapper(tmp_path, "cc", ("printf", "%s\\n"), toolchain.OF_ZIG)
    given = ["-march=armv8-a", "-march=armv8.2-a+dotprod+fp16+sve", "-march=x86-64-v3", "-DNAME=a b"]
    said = subprocess.run([cc, *given], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == ["-mcpu=generic+v8a", "-mcpu=generic+v8_2a+dotprod+fullfp16+sve", *given[2:]]


def test_packager_and_runtime_mean_the_same_engine() -> None:
    engine = next(engine for engine in library.ENGINES if engine.own)
    assert (engine.version, engine.llama, engine.ggml) == (sources.VERSION, building.LLAMA, building.GGML)


def test_an_interrupt_while_a_program_is_started_ends_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program runs before its starter has it in hand; then an interrupt must not lose it."""
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def interrupted(*given: Any, **named: Any) -> subprocess.Popen[bytes]:
        started.append(start(*given, **named))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(programs.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        programs.to_end(["sleep", "600"])
    assert started[0].returncode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
