"""Kits on a device: as a user of their own without a network, a first install, an update, one that does not answer, and
the way back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from edgepack.bundle.manifest import decode, encode
from edgepack_packager.build import Built

pytestmark = pytest.mark.real

KIOSK = 65533
VARIANT = "gguf-q4_k_m"
PYTHONS = [f"/usr/bin/python3.{minor}" for minor in (11, 12, 13, 14)]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def edgepack(*words: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "edgepack", *words], capture_output=True, text=True, check=False)
    if "Is the index reachable" in done.stderr:
        pytest.skip(f"wheels are not to be had: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that every user of this machine may look into."""
    folder = Path(mkdtemp(prefix="edgepack-kits-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that a user of their own may run, and make environments with."""
    for each in PYTHONS if os.geteuid() == 0 else [sys.executable]:
        if Path(each).exists() and not subprocess.run([each, "-Ic", "import ensurepip, venv"], check=False).returncode:
            return each
    pytest.skip("no python3-venv of the system is here")


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    """What runs a line of a shell on the device: in a network namespace without interfaces, and not as root."""
    home = place / "home"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, KIOSK, KIOSK)
        apart = ["unshare", "--net", "setpriv", f"--reuid={KIOSK}", f"--regid={KIOSK}", "--clear-groups"]
    else:
        apart = ["unshare", "--net", "--map-current-user"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("this system makes no network namespace")
    env = ["env", "-i", f"HOME={home}", "PATH=/usr/bin:/bin", f"PREFIX={home}/.local/share/edgepack/runtime"]

    def line(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*apart, *env, "sh", "-c", text], cwd=home, capture_output=True, text=True, check=False)

    assert line("tail -n +3 /proc/net/dev | grep -v lo:").stdout == ""
    return line


@pytest.fixture(scope="module")
def kits(demo_bundle: Built, place: Path, python: str) -> Path:
    """Three kits of releases of one bundle, signed: the first, one with more packages, one that answers otherwise."""
    edgepack("keygen", "-o", place / "releases")
    pem = (place / "releases.pub").read_text()
    policy = place / "policy.toml"
    policy.write_text(f"version = 1\n[[key]]\nname = \"releases\"\nbundles = [\"demo\"]\npem = '''{pem}'''\n")
    told = [python, "-Ic", "import sys; print('%d.%d' % sys.version_info[:2])"]
    version = subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()
    for release in (1, 2, 3):
        bundle = place / f"{release}.edgepack"
        shutil.copytree(demo_bundle.path, bundle)
        manifest = bundle / "manifest.json"
        plain = json.loads(manifest.read_bytes())
        plain["schema"]["features"] = sorted({*plain["schema"]["features"], "sequence"})
        plain["sequence"] = release
        if release == 3:
            for each in plain["variants"]:
                top1 = each["self_test"]["top1"]
                at = next(at for at, top in enumerate(top1) if top is not None)
                top1[at] = (top1[at] + 1) % plain["decoder"]["n_vocab"]
        manifest.write_bytes(encode(decode(json.dumps(plain).encode())))
        edgepack("sign", bundle, "--key", place / "releases.key")
        device = ["--platform", f"linux-{os.uname().machine}", "--python", version]
        more = ["--extra", "structured"] if release == 2 else []
        out = ["-o", place / f"kit{release}"]
        edgepack("kit", bundle, "--name", "assistant", "--variant", VARIANT, "--policy", policy, *device, *more, *out)
    return place


def test_a_device_is_updated_and_goes_back_by_itself_and_by_hand(kits: Path, run: Run, python: str) -> None:
    def install(release: int) -> subprocess.CompletedProcess[str]:
        return run(f"PYTHON={python} sh {kits}/kit{release}/install.sh")

    def stands_for() -> tuple[int, str]:
        """The sequence of what the name stands for, and its environment; a prompt is answered in it."""
        edgepack = "$PREFIX/current/assistant/bin/edgepack"
        answer = run(f"{edgepack} run assistant hello --max-tokens 4")
        assert (answer.returncode, bool(answer.stdout.strip())) == (0, True), answer.stderr
        found = [
            each
            for each in json.loads(run(f"{edgepack} list --all --json").stdout)["bundles"]
            if each["state"] == "current"
        ]
        return found[0]["sequence"], run("readlink $PREFIX/current/assistant").stdout.strip()

    done = install(1)
    assert done.returncode == 0, done.stderr
    first = stands_for()
    assert first[0] == 1

    done = install(2)
    assert done.returncode == 0, done.stderr
    second = stands_for()
    assert second[0] == 2
    assert second[1] != first[1]

    done = install(3)
    assert done.returncode == 1
    assert f"{VARIANT} does not give here what its bundle records" in done.stderr
    assert done.stderr.splitlines()[-1] == "assistant was not installed; whatever was in use before still is."
    assert stands_for() == second

    done = install(1)
    assert done.returncode == 1
    assert "a downgrade" in done.stderr
    assert stands_for() == second

    assert run("sh $PREFIX/device.sh rollback assistant").returncode == 0
    assert stands_for() == first
    assert run("sh $PREFIX/device.sh rollback assistant").returncode == 0
    assert stands_for() == second

    assert run("sh $PREFIX/device.sh check assistant").returncode == 0
    assert stands_for() == second
    run(
        "for b in $HOME/.local/share/edgepack/store/bundles/*; do grep -q '\"sequence\": *2' $b/manifest.json && "
        "echo ' ' >> $b/manifest.json; done"
    )
    assert run("sh $PREFIX/device.sh check assistant").returncode == 0
    assert stands_for() == first

    assert install(2).returncode == 0  # what was damaged comes in anew
    assert stands_for() == second
    assert run("sh $PREFIX/device.sh clean assistant; ls $PREFIX/envs").stdout.split() == sorted(
        Path(each[1]).name for each in (first, second)
    )
    assert not run("ls $HOME/.local/share/edgepack/store/staging").stdout
