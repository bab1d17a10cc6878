"""Detection from laid-out files: the machines that people have, without having them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.device import hardware
from edgepack.device.hardware import (
    Group,
    Hardware,
    available_of_vm_stat,
    control_group,
    cores_of_cpuinfo,
    cpu_quota,
    detect,
    inactive_file,
    memory,
    physical_cores,
    processor_name,
)

GIB = 1024**3


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def machine(**changes: object) -> Hardware:
    facts = {"system": "linux", "machine": "x86_64", "physical_cores": 8, "affinity": 16, "quota": None,
             "memory_total": 8 * GIB, "memory_available": 4 * GIB}  # fmt: skip
    return Hardware(**(facts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({}, 8),
        ({"affinity": 3}, 3),
        ({"quota": 2.5}, 2),
        ({"quota": 0.5}, 1),
        ({"quota": 64.0}, 8),
    ],
)
def test_threads_are_the_tightest_limit(changes: dict[str, object], threads: int) -> None:
    assert machine(**changes).threads == threads


def test_this_machine_has_cores_and_memory() -> None:
    found = detect()
    assert found.affinity >= 1
    assert found.physical_cores >= 1
    assert 1 <= found.threads <= found.affinity
    assert 0 < found.memory_available <= found.memory_total


def test_an_empty_root_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    found = detect(tmp_path)
    assert found.quota is None
    assert found.accelerators == ()
    assert found.physical_cores >= 1


def test_siblings_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu in range(8):
        put(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    assert physical_cores(tmp_path, set(range(8))) == 4
    assert physical_cores(tmp_path, {0, 4}) == 1
    assert physical_cores(tmp_path, {0, 1, 2}) == 3


CPUINFO = "\n\n".join(
    f"processor\t: {cpu}\nmodel name\t: Some CPU\nphysical id\t: {cpu // 4}\ncore id\t\t: {cpu // 2 % 2}"
    for cpu in range(8)
)


def test_cpuinfo_stands_in_for_sys(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", CPUINFO)
    assert physical_cores(tmp_path, set(range(8))) == 4
    assert cores_of_cpuinfo(CPUINFO, {0, 1}) == 1
    assert cores_of_cpuinfo("processor : 0\nBogoMIPS : 48\n", {0, 1, 2}) == 3


def test_memory_of_new_and_old_kernels() -> None:
    assert memory("MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  400 kB\n") == (1_024_000, 409_600)
    assert memory("MemTotal:  1000 kB\nMemFree:  100 kB\nBuffers: 20 kB\nCached: 30 kB\n") == (1_024_000, 153_600)
    assert memory("") == (0, 0)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        (("max 100000",), None),
        (("50000 100000",), 0.5),
        (("200000",), 2.0),
        (("",), None),
        (("garbage",), None),
        (("100000 0",), None),
        (("", "-1", "100000"), None),
        (("", "150000", "100000"), 1.5),
        (("", "150000", ""), None),
    ],
)
def test_quota(files: tuple[str, ...], cores: float | None) -> None:
    assert cpu_quota(*files) == cores


V2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_v2_takes_the_tightest_limit_on_the_way_up(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/mountinfo", V2)
    put(tmp_path, "proc/self/cgroup", "0::/app.slice/app.service\n")
    base = "sys/fs/cgroup/app.slice"
    put(tmp_path, f"{base}/app.service/cpu.max", "400000 100000\n")
    put(tmp_path, f"{base}/cpu.max", "150000 100000\n")
    put(tmp_path, f"{base}/app.service/memory.max", "max\n")
    put(tmp_path, f"{base}/memory.max", f"{2 * GIB}\n")
    put(tmp_path, f"{base}/memory.current", f"{GIB}\n")
    put(tmp_path, f"{base}/memory.stat", f"anon 5\ninactive_file {GIB // 2}\nactive_file 7\n")
    assert control_group(tmp_path) == Group(1.5, 2 * GIB, 2 * GIB - GIB // 2)


def test_v1_in_a_container_whose_mount_is_its_own_group(tmp_path: Path) -> None:
    mounts = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    )
    put(tmp_path, "proc/self/mountinfo", mounts)
    put(tmp_path, "proc/self/cgroup", "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n")
    put(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "250000\n")
    put(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{GIB}\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{GIB}\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.stat", f"inactive_file 1\ntotal_inactive_file {GIB // 4}\n")
    assert control_group(tmp_path) == Group(2.5, GIB, GIB // 4)


def test_v1_without_a_limit_says_so_with_a_huge_number(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/mountinfo", "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
    put(tmp_path, "proc/self/cgroup", "4:memory:/a/b\n")
    put(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert control_group(tmp_path) == Group()


@pytest.mark.parametrize(
    ("group", "quota"),
    [("0::/../../other", 1.0), ("0::/host/only", 1.0), ("0::", 1.0), ("::", 1.0), ("", None), ("garbage", None)],
)
def test_a_group_that_the_mount_does_not_show_counts_from_the_mount(
    tmp_path: Path, group: str, quota: float | None
) -> None:
    put(tmp_path, "proc/self/mountinfo", "x\n\n1 2 3\n" + V2.replace("0:26 /", "0:26 /inner"))
    put(tmp_path, "proc/self/cgroup", group)
    put(tmp_path, "sys/fs/cgroup/cpu.max", "100000 100000\n")
    assert control_group(tmp_path).quota == quota


def test_a_group_that_uses_more_than_its_limit_has_nothing_left(tmp_path: Path) -> None:
    put(tmp_path, "proc/self/mountinfo", V2)
    put(tmp_path, "proc/self/cgroup", "0::/\n")
    put(tmp_path, "sys/fs/cgroup/memory.max", "1000\n")
    put(tmp_path, "sys/fs/cgroup/memory.current", "5000\n")
    assert control_group(tmp_path).memory_left == 0


def test_inactive_file_of_both_versions() -> None:
    assert inactive_file("inactive_file 12\n") == 12
    assert inactive_file("inactive_file 12\ntotal_inactive_file 99\n") == 99
    assert inactive_file("nothing 1\n") == 0


@pytest.mark.parametrize("name", ["proc/driver/nvidia/gpus/0000:01:00.0", "dev/nvidia0"])
def test_an_nvidia_device_is_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    put(tmp_path, "dev/nvidiactl", "")
    assert detect(tmp_path).accelerators == ()
    put(tmp_path, name, "")
    assert detect(tmp_path).accelerators == ("cuda",)


VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            300000.
Pages inactive:                           20000.
Pages speculative:                         3000.
Pages throttled:                              0.
Pages wired down:                         90000.
Pages purgeable:                            400.
"""


def test_a_mac_is_read_from_its_own_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {
        "sysctl": "hw.memsize: 17179869184\nhw.physicalcpu: 8\nhw.perflevel0.physicalcpu: 4\n"
        "machdep.cpu.brand_string: Apple M2\n",
        "vm_stat": VM_STAT,
    }
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr(hardware, "_output", lambda command, *arguments: outputs[command])
    found = detect()
    assert (found.system, found.machine, found.accelerators) == ("darwin", "arm64", ("metal",))
    assert found.physical_cores == 4
    assert found.processor == "Apple M2"
    assert found.memory_total == 16 * GIB
    assert found.memory_available == 33_400 * 16384
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(hardware, "_output", lambda command, *arguments: "")
    silent = detect()
    assert silent.accelerators == ()
    assert silent.memory_total == 0
    assert silent.physical_cores >= 1


def test_vm_stat_of_another_shape_is_nothing() -> None:
    assert available_of_vm_stat(VM_STAT) == 33_400 * 16384
    assert available_of_vm_stat("Pages free: many") == 0


# Names


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (CPUINFO, "Some CPU"),
        ("", ""),
        ("processor\t: 0\nCPU part\t: 0xd0b\n\nRevision\t: c04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
         "Raspberry Pi 5 Model B Rev 1.0, part 0xd0b"),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "0xd0c"),
    ],
)  # fmt: skip
def test_the_name_of_a_processor(cpuinfo: str, name: str) -> None:
    assert processor_name(cpuinfo) == name


def test_nvidia_devices_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    for slot, name in (("0000:01:00.0", "NVIDIA GeForce RTX 4060"), ("0000:02:00.0", "NVIDIA L4")):
        put(tmp_path, f"proc/driver/nvidia/gpus/{slot}/information", f"Model: \t\t {name}\nIRQ:   \t\t 62\n")
    put(tmp_path, "proc/cpuinfo", CPUINFO)
    found = detect(tmp_path)
    assert found.accelerators == ("cuda",)
    assert found.gpus == ("NVIDIA GeForce RTX 4060", "NVIDIA L4")
    assert found.processor == "Some CPU"
