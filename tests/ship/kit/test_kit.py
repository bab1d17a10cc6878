"""A kit by its parts: which wheels a device needs, what is refused before anything is fetched, and scripts that any
shell reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.tags import cpython_tags
from packaging.utils import parse_wheel_filename
from small_bundle import variant, write

from edgepack.bundle import installed as installation
from edgepack.cli import main
from edgepack.errors import BuildError, EdgepackError, TrustError, UsageError
from edgepack_ship.kit import making, platforms, requirements, script
from edgepack_ship.kit.wheelhouse import lock

PI = platforms.platform("linux-aarch64")
TEST = {"ids": [1, 2], "top1": [2, None]}
KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""


def wheel(folder: Path, name: str, *requires: str, version: str = "1.0") -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    said = "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\n{said}")
    return path


def needed(folder: Path, first: str, python: str = "3.11") -> tuple[set[str], tuple[str, ...]]:
    needs = requirements.needed(requirements.read(folder.glob("*.whl")), Requirement(first), PI.markers(python))
    return {each.name.partition("-")[0] for each in needs.wheels}, needs.lacking


def test_markers_are_the_devices(tmp_path: Path) -> None:
    wheel(
        tmp_path, "app", "a; sys_platform == 'linux'", "b; sys_platform == 'darwin'", "c; platform_machine == 'aarch64'"
    )
    wheel(tmp_path, "a", "d; python_version < '3.12'", "e; os_name == 'nt'", "f; platform_system == 'Linux'")
    for name in "bcdef":
        wheel(tmp_path, name)
    assert needed(tmp_path, "app") == ({"app", "a", "c", "d", "f"}, ())
    assert needed(tmp_path, "app", "3.12") == ({"app", "a", "c", "f"}, ())


def test_extras_are_followed_where_they_are_asked_for(tmp_path: Path) -> None:
    wheel(tmp_path, "app", "app[x]; extra == 'all'", "A.b[cpu]>=1; extra == 'x'", "c; extra == 'other'")
    wheel(tmp_path, "a_b", "d; extra == 'cpu'")
    wheel(tmp_path, "d", "app")
    assert needed(tmp_path, "app") == ({"app"}, ())
    assert needed(tmp_path, "app[all]") == ({"app", "a_b", "d"}, ())


def test_what_is_not_there_or_too_old_is_lacking(tmp_path: Path) -> None:
    wheel(tmp_path, "app", "a>=2; python_version >= '3.11'", "b[x]<3; sys_platform == 'linux'")
    wheel(tmp_path, "a", version="1.9")
    assert needed(tmp_path, "app") == ({"app"}, ("a>=2", "b[x]<3"))


@pytest.mark.parametrize("requirement", ["not a requirement!", None])
def test_a_file_that_is_no_wheel_is_named(tmp_path: Path, requirement: str | None) -> None:
    path = wheel(tmp_path, "app", *([requirement] if requirement else []))
    if requirement is None:
        path.write_bytes(b"PK")
    with pytest.raises(BuildError, match=r"app-1\.0-py3-none-any\.whl is no wheel"):
        requirements.read([path])


def test_a_lock_names_each_wheel_by_its_hash(tmp_path: Path) -> None:
    paths = [wheel(tmp_path, "typing_extensions", version="4.16.0"), wheel(tmp_path, "app")]
    lines = lock(paths).splitlines()
    assert [line.split(" --hash=sha256:")[0] for line in lines] == ["app==1.0", "typing-extensions==4.16.0"]
    assert all(len(line.rpartition(":")[2]) == 64 for line in lines)
    assert lock(paths[::-1]) == lock(paths)


def test_a_platform_takes_wheels_that_its_c_library_runs() -> None:
    assert platforms.platform("Linux-ARM64") == PI
    older = platforms.platform("linux-amd64", platforms.glibc_of("2.31"))
    assert (older.name, older.machine) == ("linux-x86_64", "x86_64")
    tags = set(cpython_tags((3, 11), platforms=older.tags))
    names = {31: True, 34: False}
    for minor, fits in names.items():
        _, _, _, found = parse_wheel_filename(f"a-1-cp311-abi3-manylinux_2_{minor}_x86_64.whl")
        assert bool(tags & found) is fits


@pytest.mark.parametrize("name", ["linux", "linux-riscv64", "windows-x86_64", "macos-arm64", "linux-x86_64-extra"])
def test_other_platforms_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no kit for"):
        platforms.platform(name)


@pytest.mark.parametrize("text", ["2.16", "3.1", "2", "2.36.1", "", "2.٣٦"])
def test_other_c_libraries_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="glibc cannot be"):
        platforms.glibc_of(text)


@pytest.mark.parametrize("text", ["3.10", "3", "2.7", "3.11.2", "", "3.١٢"])
def test_other_pythons_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="python cannot be"):
        platforms.python_of(text)


def policy(folder: Path, key: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(f'version = 1\n[[key]]\nname = "releases"\nbundles = ["*"]\n{key}\n')
    return path


@pytest.mark.parametrize(
    ("changes", "asked", "error", "said"),
    [
        ({"self_test": None}, {}, UsageError, "no variant with a self-test"),
        ({}, {"extras": ["nonsense]"]}, UsageError, "no extra 'nonsense]'"),
        ({}, {"name": "../up"}, UsageError, "Nothing can be installed as"),
        ({}, {"variants": ["gguf-none"]}, EdgepackError, "gguf-none"),
        ({}, {"key": 'file = "releases.pub"'}, UsageError, "by a file"),
        ({}, {"key": f"pem = '''{KEY}'''"}, TrustError, "is not signed"),
    ],
)
def test_what_no_device_could_use_is_refused_before_anything_is_fetched(
    tmp_path: Path, changes: dict[str, Any], asked: dict[str, Any], error: type[Exception], said: str
) -> None:
    bundle = write(tmp_path / "small.edgepack", [variant("gguf-q4", **({"self_test": TEST} | changes))])
    (tmp_path / "releases.pub").write_text(KEY)
    rules = {"policy": policy(tmp_path, asked["key"])} if "key" in asked else {}
    rest = {name: value for name, value in asked.items() if name != "key"}
    with pytest.raises(error, match=said.replace("]", r"\]")):
        making.make(bundle, tmp_path / "kit", PI, "3.11", **rules, **rest)
    assert not (tmp_path / "kit").exists()


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A kit without wheels, for this machine and this Python."""
    folder = tmp_path / "kit"
    folder.mkdir()
    (folder / "small.edgepack.tar").write_bytes(b"packed")
    here = platforms.platform(f"linux-{os.uname().machine}")
    script.write(folder, "small", "ab" * 32, here, f"{sys.version_info[0]}.{sys.version_info[1]}", "")
    return folder


def installed(kit: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    places = {"EDGEPACK_PREFIX": str(kit.parent / "prefix"), "EDGEPACK_STORE": str(kit.parent / "store")}
    env = {**os.environ, "PYTHON": sys.executable, **places, **changes}
    return subprocess.run(["sh", kit / "install.sh"], env=env, capture_output=True, text=True, check=False)


def test_everything_is_filled_in_and_listed(kit: Path) -> None:
    names = {path.name for path in kit.iterdir()}
    assert names >= {"install.sh", "device.sh", "point.py", "kit.env", "lock.txt", "edgepack-small.service"}
    assert not [name for name in names if b"@{" in (kit / name).read_bytes()]
    listed = {line.split("  ")[1] for line in (kit / "SHA256SUMS").read_text().splitlines()}
    assert listed == names - {"SHA256SUMS"}


@pytest.mark.parametrize("shell", ["sh", "dash", "busybox sh", "bash --posix"])
@pytest.mark.parametrize("name", ["install.sh", "device.sh"])
def test_every_shell_reads_the_scripts(kit: Path, name: str, shell: str) -> None:
    words = shell.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not here")
    done = subprocess.run([*words, "-n", kit / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_takes_the_unit(kit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "edgepack-small.service"
    text = (kit / unit.name).read_text()
    unit.write_text(text.replace("@PREFIX@", "/opt/edgepack").replace("@STORE@", "/var/lib/edgepack/store"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_kit_that_is_not_whole_installs_nothing(kit: Path, how: str) -> None:
    packed = kit / "small.edgepack.tar"
    packed.unlink() if how == "missing" else packed.write_bytes(b"Packed")
    done = installed(kit)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("small.edgepack.tar: ")
    assert "error: The kit is damaged or cut short." in done.stderr
    assert not (kit.parent / "prefix").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PYTHON": "/bin/false"}, "and /bin/false is not that"),
        ({"PYTHON": "/no/python"}, "and /no/python is not that"),
        ({"EDGEPACK_PREFIX": "here"}, "must be absolute paths"),
        ({"EDGEPACK_PREFIX": "/a b"}, "has letters that"),
        ({"EDGEPACK_STORE": "/a|b"}, "has letters that"),
    ],
)
def test_a_device_that_does_not_fit_is_told(kit: Path, changes: dict[str, str], said: str) -> None:
    done = installed(kit, **changes)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[0]
    assert done.stderr.splitlines()[1].startswith("hint: ")
    assert not (kit.parent / "prefix").exists()


def test_a_kit_for_another_machine_is_told(kit: Path) -> None:
    settings = kit / "kit.env"
    settings.write_text(settings.read_text().replace(f"KIT_MACHINE={os.uname().machine}", "KIT_MACHINE=s390x"))
    done = installed(kit)
    assert done.returncode == 1
    assert done.stderr.startswith("error: This kit is for Linux on s390x")


def test_a_bundle_of_which_nothing_can_run_here_is_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write(tmp_path / "small.edgepack", [variant("absent-q4", self_test=TEST)])
    assert main(["install", str(bundle), "--store", str(tmp_path / "store"), "--replay"]) == 1
    assert "No variant could be tried here: absent-q4" in capsys.readouterr().err
    assert installation.read(tmp_path / "store", "small") is None


def test_links_are_replaced_in_one_step(kit: Path, tmp_path: Path) -> None:
    links = [tmp_path / "one", tmp_path / "two"]
    links[0].symlink_to("before")
    (tmp_path / "two.new").symlink_to("left by a loss of power")
    subprocess.run([sys.executable, "-I", kit / "point.py", "../envs/1", *links], check=True)
    assert [os.readlink(link) for link in links] == ["../envs/1"] * 2
    assert not list(tmp_path.glob("*.new"))
