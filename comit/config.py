"""What the machine gives this process: cores and memory, less what its control groups withhold.

A limit stands in the group of a process or in any group above it, and the least of them holds: that
of a systemd unit is in ``/sys/fs/cgroup/system.slice/NAME.service``, which ``/proc/self/cgroup``
names (cgroups(7)). Version 2 has one tree of groups, version 1 one for each controller. A container
may see its own group as the root, or the path that it has on the host: both are looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MOUNT = PurePosixPath("sys/fs/cgroup")
MOST_DECODERS = 32
DECODER_BYTES = 256 * 2**20  # of a process that decodes 6-megapixel radiographs: 207 MiB measured
OTHERS_BYTES = 2**30  # of the main process with its engine, and the ring
RING_SHARE = 4  # the ring gets at most this part of the memory


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: its affinity, and the CPU quota of its groups, rounded down.

    ``root`` is where ``proc`` and ``sys`` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([cores or 1, *_quotas(root)]))


def decoders(root: Path = Path("/")) -> int:
    """Decoding processes that there are cores and memory for, 1 to 32."""
    fit = (usable_memory(root) - OTHERS_BYTES) // DECODER_BYTES
    return max(1, min(usable_cores(root), fit, MOST_DECODERS))


def ring_bytes(wanted: int, root: Path = Path("/")) -> int:
    """Bytes of shared memory for decoded pixels: as many as wanted, a quarter of all at most."""
    return min(wanted, usable_memory(root) // RING_SHARE)


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes this process may use: those of the machine, and the memory limit of its groups."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        int(text)
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        for group in _groups(root, "memory")
        if (text := _read(group / name)).isdigit()
    ]
    return min([machine, *limits])


def _quotas(root: Path) -> Iterator[int]:
    for group in _groups(root, "cpu"):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if not period:
            quota, period = (_read(group / f"cpu.cfs_{n}_us") for n in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            yield int(quota) // int(period)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all above it, of both versions."""
    for line in _read(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2, alone or beside version 1
            mounts = [MOUNT, MOUNT / "unified"]
        elif controller in controllers.split(","):
            mounts = [MOUNT / controllers, MOUNT / controller]
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            for above in (group, *group.parents):
                yield root / mount / above


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
