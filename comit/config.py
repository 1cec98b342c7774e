"""What the machine gives this process."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the CPU quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _quota(Path("/sys/fs/cgroup"))))


def _quota(root: Path) -> int:
    """Whole cores of a cgroup's CPU quota, v2 then v1; a large number where there is none."""
    try:
        limit, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return 10**6
    quota = int(limit) if limit.strip().lstrip("-").isdigit() else -1
    return max(1, quota // int(period)) if quota > 0 else 10**6
