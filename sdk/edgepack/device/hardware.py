"""Facts of the machine: cores that may be used, memory that is free, accelerators that are present.

The facts are read from files under a root folder, so that a test can lay out any machine. Whatever a system does not
tell stays at its most harmless value; detection never raises.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a plan needs to know of a machine. Memory is in bytes.

    ``system`` is "linux", "darwin" or "windows"; ``machine`` is "x86_64" or "arm64". ``physical_cores`` counts those
    within the affinity, on Apple Silicon the performance cores. ``quota`` is the cgroup's CPU limit in cores,
    ``memory_available`` the least of the free memory and of what the cgroup still grants; a ``memory_total`` of 0
    means that the system does not say. ``accelerators`` holds "metal" on Apple Silicon and "cuda" where an NVIDIA
    device is present. ``processor`` and ``gpus`` are the names that the makers gave them, as far as the system knows.
    """

    system: str
    machine: str
    physical_cores: int
    affinity: int
    quota: float | None
    memory_total: int
    memory_available: int
    accelerators: tuple[str, ...] = ()
    processor: str = ""
    gpus: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Threads for an engine: min(affinity, floor(quota), physical cores), at least 1."""
        limits = [self.affinity, self.physical_cores]
        if self.quota is not None:
            limits.append(int(self.quota))
        return max(1, min(limits))


def most_threads() -> int:
    """Return the most threads that are worth an attempt here: 8 for each core that the system has."""
    return 8 * (os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Group:
    """What a control group grants: CPU time in cores and memory in bytes; None where it sets no limit."""

    quota: float | None = None
    memory_limit: int | None = None
    memory_left: int | None = None


def detect(root: Path = Path("/")) -> Hardware:
    """Return the facts of this machine, read below ``root`` (anything but "/" is for tests). Never raises."""
    system = platform.system().lower()
    machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(platform.machine().lower(), platform.machine().lower())
    cpus = _affinity()
    if system == "darwin":
        return _darwin(machine, cpus, _output("sysctl", *_SYSCTLS), _output("vm_stat"))
    group = control_group(root)
    total, available = memory(_text(root / "proc/meminfo"))
    if not total:
        total, available = _sysconf_memory()
    return Hardware(
        system=system,
        machine=machine,
        physical_cores=physical_cores(root, cpus),
        affinity=len(cpus),
        quota=group.quota,
        memory_total=total if group.memory_limit is None else min(total, group.memory_limit),
        memory_available=available if group.memory_left is None else min(available, group.memory_left),
        accelerators=("cuda",) if _has_nvidia(root) else (),
        processor=processor_name(_text(root / "proc/cpuinfo")),
        gpus=_nvidia_names(root),
    )


def narrow_python(engine: str) -> str | None:
    """Return why an engine cannot be installed for a 32-bit Python, None for another: many 64-bit systems have one."""
    if sys.maxsize > 1 << 32:
        return None
    return f"This Python is 32-bit, and {engine} has wheels for a 64-bit Python only."


# Linux: cores


def processor_name(cpuinfo: str) -> str:
    """Return the processor's name, or on ARM the board's and the core's part number; "" where it has none."""
    found: dict[str, str] = dict(re.findall(r"^(model name|Model|CPU part)[ \t]*: (.*)$", cpuinfo, re.MULTILINE))
    return found.get("model name") or ", part ".join(found[name] for name in ("Model", "CPU part") if name in found)


def physical_cores(root: Path, cpus: set[int]) -> int:
    """Return how many physical cores the logical ``cpus`` belong to, from /sys or else /proc/cpuinfo."""
    cores: set[object] = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = _text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list")
        if not siblings.strip():
            return cores_of_cpuinfo(_text(root / "proc/cpuinfo"), cpus)
        cores.add(siblings.strip())
    return max(1, len(cores))


def cores_of_cpuinfo(text: str, cpus: set[int]) -> int:
    """Return the distinct (physical id, core id) of ``cpus`` in /proc/cpuinfo; where it has none, all ``cpus``."""
    cores: set[tuple[str, str]] = set()
    for block in text.split("\n\n"):
        facts = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", block, re.MULTILINE))
        if facts.get("processor", "").isdecimal() and int(facts["processor"]) in cpus and "core id" in facts:
            cores.add((facts.get("physical id", "0"), facts["core id"]))
    return len(cores) or max(1, len(cpus))


# Linux: memory and control groups


def memory(meminfo: str) -> tuple[int, int]:
    """Return (total, available) bytes of /proc/meminfo, (0, 0) where it cannot be read."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)}
    total = kib.get("MemTotal", 0)
    # Kernels before 3.14 have no MemAvailable.
    available = kib.get("MemAvailable", kib.get("MemFree", 0) + kib.get("Buffers", 0) + kib.get("Cached", 0))
    return total * 1024, min(available, total) * 1024


def control_group(root: Path) -> Group:
    """Return the tightest limits of this process's control groups and of all groups above them, v1 and v2."""
    quotas: list[float] = []
    limits: list[int] = []
    left: list[int] = []
    for folder in control_group_folders(_text(root / "proc/self/mountinfo"), _text(root / "proc/self/cgroup")):
        at = root / str(folder).lstrip("/")
        quota = cpu_quota(_text(at / "cpu.max"), _text(at / "cpu.cfs_quota_us"), _text(at / "cpu.cfs_period_us"))
        if quota is not None:
            quotas.append(quota)
        limit = _number(_text(at / "memory.max") or _text(at / "memory.limit_in_bytes"))
        used = _number(_text(at / "memory.current") or _text(at / "memory.usage_in_bytes"))
        # v1 says "no limit" with the largest multiple of a page below 2**63.
        if limit is not None and limit < 2**62:
            limits.append(limit)
            left.append(max(0, limit - max(0, (used or 0) - inactive_file(_text(at / "memory.stat")))))
    return Group(min(quotas, default=None), min(limits, default=None), min(left, default=None))


def control_group_folders(mountinfo: str, cgroup: str) -> Iterator[PurePosixPath]:
    """Yield the folders of a process's groups, innermost first, from its two files in /proc/self."""
    groups: dict[str, str] = {}
    for line in cgroup.splitlines():
        if line.count(":") >= 2:
            _, controllers, path = line.split(":", 2)
            groups.update(dict.fromkeys(controllers.split(","), path))
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        names = {""} if kinds[0] == "cgroup2" else set(kinds[2].split(",")) & {"cpu", "memory"}
        for name in sorted(names & groups.keys()):
            yield from _up(PurePosixPath(fields[4]), fields[3], groups[name])


def _up(mount: PurePosixPath, mount_root: str, path: str) -> Iterator[PurePosixPath]:
    # A container sees its own group as the root of the mount, while the path counts from the host's root.
    outside = not PurePosixPath(path).is_relative_to(mount_root)
    inside = PurePosixPath() if outside else PurePosixPath(path).relative_to(mount_root)
    if ".." not in inside.parts:
        folder = mount / inside
        while folder != mount:
            yield folder
            folder = folder.parent
    yield mount


def cpu_quota(cpu_max: str, cfs_quota: str = "", cfs_period: str = "") -> float | None:
    """Return the limit in cores that cpu.max ("50000 100000") or the two files of v1 set, else None."""
    words = cpu_max.split() or [cfs_quota.strip(), cfs_period.strip()]
    quota, period = _number(words[0]), _number(words[1] if len(words) > 1 else "100000")
    return quota / period if quota and period and quota > 0 else None


def inactive_file(memory_stat: str) -> int:
    """Return the bytes of page cache that the kernel would give back, from memory.stat of either version."""
    found = dict(re.findall(r"^(inactive_file|total_inactive_file) (\d+)$", memory_stat, re.MULTILINE))
    return int(found.get("total_inactive_file") or found.get("inactive_file") or 0)


# macOS

_SYSCTLS = ("hw.memsize", "hw.physicalcpu", "hw.perflevel0.physicalcpu", "machdep.cpu.brand_string")


def _darwin(machine: str, cpus: set[int], sysctls: str, vm_stat: str) -> Hardware:
    facts = {name: int(value) for name, value in re.findall(r"^([\w.]+): (\d+)$", sysctls, re.MULTILINE)}
    total = facts.get("hw.memsize", 0)
    return Hardware(
        system="darwin",
        machine=machine,
        physical_cores=facts.get("hw.perflevel0.physicalcpu") or facts.get("hw.physicalcpu") or len(cpus),
        affinity=len(cpus),
        quota=None,
        memory_total=total,
        memory_available=min(total, available_of_vm_stat(vm_stat) or total),
        accelerators=("metal",) if machine == "arm64" else (),
        processor=name[1] if (name := re.search(r"^machdep.cpu.brand_string: (.*)$", sysctls, re.MULTILINE)) else "",
    )


def available_of_vm_stat(text: str) -> int:
    """Return the bytes that macOS can hand out: free, inactive, speculative and purgeable pages of vm_stat."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", text, re.MULTILINE)
    return sum(int(count) for count in pages) * int(size[1]) if size else 0


# What the system tells, or a harmless value


def _affinity() -> set[int]:
    ask: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    if ask is not None:
        try:
            return ask(0) or {0}
        except OSError:
            pass
    return set(range(os.cpu_count() or 1))


def _has_nvidia(root: Path) -> bool:
    try:
        return any((root / "proc/driver/nvidia/gpus").glob("*")) or any((root / "dev").glob("nvidia[0-9]*"))
    except OSError:
        return False


def _nvidia_names(root: Path) -> tuple[str, ...]:
    try:
        texts = [_text(path) for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))]
    except OSError:
        return ()
    return tuple(name for text in texts for name in re.findall(r"^Model:\s*(.*\S)", text, re.MULTILINE))


def _sysconf_memory() -> tuple[int, int]:
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        return page * total, page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0, 0


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def last_level_cache(root: Path = Path("/")) -> int:
    """Return the bytes of the largest cache of the first processor that the system tells of, 0 where it tells of none.

    Linux: Documentation/ABI/testing/sysfs-devices-system-cpu.
    """
    found = [0]
    for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            found.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1:]])
        except (OSError, ValueError, KeyError):
            continue
    return max(found)
