"""Limits of control groups, in trees as systemd, Docker and Kubernetes make them."""

from __future__ import annotations

from pathlib import Path

import pytest

from comit import config
from comit.config import decoders, ring_bytes, usable_cores, usable_memory

MACHINE = 64


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """A machine of 64 cores and 1 TiB."""
    monkeypatch.setattr(config.os, "sched_getaffinity", lambda _: range(MACHINE))
    monkeypatch.setattr(config.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**28}.get)


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


UNIT = "system.slice/comit.service"
V1 = f"12:memory:/{UNIT}\n4:cpu,cpuacct:/{UNIT}\n1:name=systemd:/{UNIT}\n0::/{UNIT}"
V2 = f"0::/{UNIT}"


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        (V2, {}, MACHINE),
        (V2, {f"{UNIT}/cpu.max": "200000 100000"}, 2),
        (V2, {f"{UNIT}/cpu.max": "max 100000"}, MACHINE),
        (V2, {f"{UNIT}/cpu.max": "50000 100000"}, 1),
        (V2, {f"{UNIT}/cpu.max": "350000 100000", "system.slice/cpu.max": "max 100000"}, 3),
        (V2, {f"{UNIT}/cpu.max": "800000 100000", "system.slice/cpu.max": "300000 100000"}, 3),
        (V2, {"cpu.max": "400000 100000"}, 4),  # a container that shares the host's names
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/../../x", {"cpu.max": "400000 100000"}, 4),
        ("", {"cpu.max": "400000 100000"}, 4),
        (V2, {f"{UNIT}/cpu.max": "nonsense"}, MACHINE),
        (V2, {f"{UNIT}/cpu.max": "100000 0"}, MACHINE),
        (
            V1,
            {
                f"cpu,cpuacct/{UNIT}/cpu.cfs_quota_us": "600000",
                f"cpu,cpuacct/{UNIT}/cpu.cfs_period_us": "100000",
            },
            6,
        ),
        (
            V1,
            {
                f"cpu/{UNIT}/cpu.cfs_quota_us": "-1",
                f"cpu/{UNIT}/cpu.cfs_period_us": "100000",
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (V1, {f"unified/{UNIT}/cpu.max": "500000 100000"}, 5),
    ],
)
def test_the_least_cpu_quota_along_the_path_holds(tmp_path, cgroup, files, cores):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert usable_cores(machine(tmp_path, cgroup, files)) == cores


@pytest.mark.parametrize(
    ("cgroup", "files", "memory"),
    [
        (V2, {}, 2**40),
        (V2, {f"{UNIT}/memory.max": "2147483648"}, 2**31),
        (V2, {f"{UNIT}/memory.max": "max", f"{UNIT}/memory.high": "1073741824"}, 2**30),
        (V2, {f"{UNIT}/memory.max": str(2**33), "system.slice/memory.max": str(2**32)}, 2**32),
        (V1, {f"memory/{UNIT}/memory.limit_in_bytes": str(2**32)}, 2**32),
        (V1, {f"memory/{UNIT}/memory.limit_in_bytes": str(2**63 - 4096)}, 2**40),
    ],
)
def test_the_least_memory_limit_along_the_path_holds(tmp_path, cgroup, files, memory):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert usable_memory(machine(tmp_path, cgroup, files)) == memory


@pytest.mark.parametrize(
    ("gibibytes", "processes", "ring"), [(0.25, 1, 2**26), (2, 4, 2**29), (64, 32, 2**29)]
)
def test_processes_and_buffers_fit_the_memory(tmp_path, gibibytes, processes, ring):
    limit = {f"sys/fs/cgroup/{UNIT}/memory.max": str(int(gibibytes * 2**30))}
    root = machine(tmp_path, V2, limit)
    assert decoders(root) == processes
    assert ring_bytes(2**29, root) == ring
