"""Engines for other machines, run on this one by qemu: doctor, golden replay, and instructions a token.

    apt install --no-install-recommends qemu-user
    edgepack engine build --for pi5 --out wheels
    python benchmarks/emulated.py FOLDER BUNDLE wheels/*.whl [--cpus cortex-a72 cortex-a76] [--json emulated.json]

FOLDER keeps what a device has, made once: Debian's Python (fetched by apt and unpacked, for which nobody needs to be
root), and from the package index what edgepack needs there with the engines of gguf and onnx; edgepack is this one.
Each wheel runs on its processors, beside the engines of the index. Takes Debian, a C compiler, and QEMU 7 or 8 with
plugins, which ``qemu-user`` has and ``qemu-user-static`` has not.

"doctor" is the version that it says runs, "replay" the verdict of ``edgepack verify --replay`` on a variant; "prefill"
and "decode" are million instructions a token of a prompt and of a step, on one thread, with what Python does in them.
An instruction is no time, but a processor's kernels show in their number.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepack.bundle.files import open_bundle
from edgepack.device.state import PREFERENCE

HERE = Path(__file__).resolve().parent
NEEDED = ("python3", "libgomp1", "libstdc++6")  # the index's wheel of llama.cpp takes OpenMP from the system
GLIBC = range(36, 16, -1)  # 2.36 is of Debian 12


DEBIAN = {"aarch64": "arm64", "x86_64": "amd64"}
"""Machines, as wheels and qemu call them and as Debian does."""

CPUS = {
    "pi4": ("cortex-a72",),
    "pi5": ("cortex-a76",),
    "jetson": ("cortex-a76",),  # QEMU 7 has no A78AE, which has the same extensions
    "arm64": ("cortex-a72", "cortex-a76", "a64fx", "max"),
    "x86-64": ("Nehalem", "Haswell"),
    "x86-64-v3": ("Haswell",),
}
"""Where an engine runs that was compiled for a processor. QEMU has no AVX-512."""
IDENTITIES = {"cortex-a72": (0x41, 0xD08), "cortex-a76": (0x41, 0xD0B), "a64fx": (0x46, 0x001), "max": (0x00, 0x051)}
"""Implementer and part of ARM's processors, as their register MIDR_EL1 has them."""


class Device:
    """A machine in a folder: ``root`` is its system, ``site`` what pip installed on it."""

    def __init__(self, folder: Path, machine: str) -> None:
        self.folder, self.machine = folder / machine, machine
        self.root, self.site = self.folder / "root", self.folder / "site"
        if not self.root.is_dir():
            made = self.folder / "unpacked"
            shutil.rmtree(made, ignore_errors=True)
            for package in self._packages():
                call("dpkg-deb", "-x", package, made)
            made.rename(self.root)
        found = self.root.glob("usr/bin/python3.*")
        self.interpreter = next(path for path in found if path.suffix[1:].isdigit())
        if not self.site.is_dir():
            self.install("needed", f"{HERE.parent}[cli,gguf,onnx]").rename(self.site)
        self.edgepack = self.install("edgepack", "--no-deps", HERE.parent)

    def _packages(self) -> Iterator[Path]:
        """Download Debian's packages and what they depend on, by an apt that knows of this folder alone."""
        apt = self.folder / "apt"
        for folder in ("lists/partial", "cache/archives/partial"):
            (apt / folder).mkdir(parents=True, exist_ok=True)
        (apt / "status").touch()
        settings = {"APT::Architecture": DEBIAN[self.machine], "APT::Architectures": DEBIAN[self.machine]}
        settings |= {"Dir::State": apt, "Dir::State::Lists": "lists", "Dir::State::status": apt / "status"}
        settings |= {"Dir::Cache": apt / "cache", "APT::Install-Recommends": "0", "APT::Sandbox::User": ""}
        (apt / "conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        for command in (["update"], ["install", "--download-only", "--yes", *NEEDED]):
            call("apt-get", "-qq", *command, APT_CONFIG=apt / "conf")
        return (apt / "cache" / "archives").glob("*.deb")

    def install(self, name: str, *what: str | Path) -> Path:
        """Install wheels of the machine into a folder of that name, anew, and return it."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        tags = [f"{each}_{self.machine}" for each in (*(f"manylinux_2_{minor}" for minor in GLIBC), "manylinux2014")]
        platforms = [word for tag in tags for word in ("--platform", tag)]
        version = ("--python-version", self.interpreter.name.removeprefix("python"))
        wheels = ("--only-binary", ":all:", "--target", target, *platforms, *version)
        call(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wheels, *what)
        return target

    def python(self, cpu: str) -> Path:
        """Write a program that is Python on the machine, which its own children run again, and return its path."""
        path = self.folder / "bin" / cpu / "python"
        path.parent.mkdir(parents=True, exist_ok=True)
        qemu = shutil.which(f"qemu-{self.machine}")
        if qemu is None:
            raise SystemExit(f"qemu-{self.machine} is not here: apt install --no-install-recommends qemu-user")
        command = shlex.join([qemu, "-cpu", cpu, "-L", str(self.root)])
        # The plugin counts in this process alone: children run without it, and faster.
        counting = "plugin=$EMULATED_PLUGIN\nunset EMULATED_PLUGIN\n"
        ran = f'exec {command} ${{plugin:+-plugin "$plugin"}} -0 "$0" {shlex.quote(str(self.interpreter))} "$@"\n'
        path.write_text(f"#!/bin/sh\n{counting}{ran}")
        path.chmod(0o755)
        if self.machine == "aarch64":
            self._identify(*IDENTITIES.get(cpu, IDENTITIES["max"]))
        return path

    def _identify(self, implementer: int, part: int) -> None:
        """Lay a processor's description where programs look: else QEMU 7 shows them this machine's, on which ONNX
        Runtime for ARM crashes."""
        lines = (
            f"Features\t: fp asimd\nCPU implementer\t: {implementer:#04x}\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        )
        lines += f"CPU part\t: {part:#05x}\nCPU revision\t: 0\n\n"
        path = self.root / "proc" / "cpuinfo"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"processor\t: {number}\n{lines}" for number in range(os.cpu_count() or 1)))

    def run(
        self, cpu: str, engine: Path | None, *command: str | Path, **environment: str | Path
    ) -> subprocess.CompletedProcess[str]:
        """Run Python on the machine, with an engine of ours if one is given."""
        # A state of its own: what was found on one processor is not so on another.
        state = self.folder / "state" / (engine.name if engine else "index") / cpu
        path = os.pathsep.join(str(each) for each in (engine, self.edgepack, self.site) if each)
        given = {"PYTHONHOME": self.root / "usr", "PYTHONPATH": path, "EDGEPACK_STATE": state, **environment}
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return subprocess.run(
            [self.python(cpu), *command],
            env={**own, **{name: str(value) for name, value in given.items()}},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )


def call(*command: str | Path, **environment: Path) -> None:
    """Run a program of this machine. Raises ``CalledProcessError``."""
    subprocess.run(command, check=True, env={**os.environ, **{name: str(value) for name, value in environment.items()}})


def answered(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return what a program printed as JSON, nothing where it did not come so far."""
    text = done.stdout.strip()
    found: dict[str, Any] = json.loads(text) if text.endswith("}") else {}
    return found


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Return how a program ended that gave no answer."""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def examine(device: Device, cpu: str, engine: Path | None, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Ask doctor, replay and count on a processor; yield a row for each variant, with an engine of ours for gguf's."""
    preference = {PREFERENCE + "GGUF": "edgepack-llama" if engine else "xllamacpp"}
    doctor = device.run(cpu, engine, "-m", "edgepack", "doctor", "--json", **preference)
    supports = answered(doctor).get("runtimes", {})
    verify = device.run(cpu, engine, "-m", "edgepack", "verify", asked.bundle, "--replay", "--json", **preference)
    verdicts = {each["name"]: each for each in answered(verify).get("replays", [])}
    for variant in asked.bundle_variants:
        if engine and variant.runtime != "gguf":
            continue
        support, verdict = supports.get(variant.runtime, {}), verdicts.get(variant.id, {})
        name = engine.name if engine else {"gguf": "xllamacpp"}.get(variant.runtime, variant.runtime)
        said = support.get("version") if support.get("devices") else support.get("reason")
        row = {"cpu": cpu, "engine": name, "variant": variant.id, "doctor": said or last_words(doctor)}
        row["replay"] = f"{verdict.get('verdict', last_words(verify))} {verdict.get('reason', '')}".strip()
        yield row | counted(device, cpu, engine, variant.id, asked, preference)


def counted(
    device: Device, cpu: str, engine: Path | None, variant: str, asked: argparse.Namespace, preference: dict[str, str]
) -> dict[str, Any]:
    """Return the million instructions a token of a prompt and of a step, or how it ended before it had them."""
    marks, plugin = device.folder / "marks", device.folder / "count.so"
    call("cc", "-shared", "-fPIC", "-O2", HERE / "emulated_count.c", "-o", plugin)
    worker = (HERE / "emulated_worker.py", asked.bundle, variant, str(asked.prompt), str(asked.decoded))
    ran = device.run(cpu, engine, *worker, **preference, EMULATED_PLUGIN=f"{plugin},out={marks}")
    if ran.returncode:
        return {"failed": last_words(ran)}
    begun, prompted, ended = map(int, marks.read_text().split())
    return {"prefill": (prompted - begun) / asked.prompt / 1e6, "decode": (ended - prompted) / asked.decoded / 1e6}


def show(row: dict[str, Any]) -> None:
    """Print a row of the table in Markdown."""
    counts = [f"{row[name]:.2f}" if name in row else "" for name in ("prefill", "decode")]
    if "failed" in row:
        counts[0] = row["failed"]
    cells = (row["cpu"], row["engine"], row["variant"], row["doctor"], row["replay"], *counts)
    print(f"| {' | '.join(cells)} |", flush=True)


def unpacked(wheel: Path, folder: Path) -> tuple[Path, str, str]:
    """Unpack an engine's wheel; return its folder, the processor that it was compiled for, and the wheel's machine."""
    machine = next(name for name in DEBIAN if wheel.stem.endswith(name))
    engine = folder / machine / "engines" / wheel.name.split("-")[1]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(engine)
    return engine, json.loads((engine / "edgepack_llama" / "build.json").read_text())["processor"], machine


def main() -> None:
    """Print a row for each processor, engine and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument("--cpus", nargs="+", help="instead of those that each wheel was compiled for")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--decoded", type=int, default=8)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.folder, asked.bundle = asked.folder.resolve(), asked.bundle.resolve()
    variants = open_bundle(asked.bundle).manifest.variants
    asked.bundle_variants = [each for each in variants if each.runtime in ("gguf", "onnx")]
    engines = [unpacked(wheel, asked.folder) for wheel in asked.wheels]
    print("| processor | engine | variant | doctor | replay | prefill | decode |")
    print("|---|---|---|---|---|---:|---:|")
    rows: list[dict[str, Any]] = []
    for machine in dict.fromkeys(machine for _, _, machine in engines):
        device = Device(asked.folder, machine)
        pairs = [(cpu, engine) for engine, name, of in engines if of == machine for cpu in asked.cpus or CPUS[name]]
        indexed = [(cpu, None) for cpu in dict.fromkeys(cpu for cpu, _ in pairs)]
        for cpu, engine in [*indexed, *pairs]:
            for row in examine(device, cpu, engine, asked):
                rows.append(row)
                show(row)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
