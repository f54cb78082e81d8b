"""What the operating system lets this process have of the processor, and who else has it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mfu_sdk.doctor.finding import Finding

# Governors that keep the clock down although there is work. "schedutil" and "ondemand" raise it in milliseconds, and
# so does "powersave" of drivers that choose by themselves.
_SLOW = frozenset({"powersave", "conservative", "userspace"})
_SELF_DRIVEN = ("intel_pstate", "amd-pstate-epp")


@dataclass(frozen=True, slots=True)
class Processor:
    """Cores of the machine and those that this process may run on, and the load of the last minute.

    `quota_cores` is how many cores' worth of time the cgroup gives, None for no limit; `slow_governor` the one that
    keeps a core's clock down, None for none.
    """

    cores: int
    usable_cores: int
    quota_cores: float | None
    load: float | None
    slow_governor: str | None = None


def read_processor(root: Path = Path("/")) -> Processor:
    """This machine's; `root` is where /proc and /sys are."""
    cores = os.cpu_count() or 1
    return Processor(
        cores=cores,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        quota_cores=quota_cores(root),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        slow_governor=slow_governor(root),
    )


def quota_cores(root: Path) -> float | None:
    """The least that a cgroup above this process gives, in cores; version 1 or 2, whichever is mounted."""
    quotas = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            quotas += [_quota(_text(at / "cpu.max")) for at in _upwards(root / "sys/fs/cgroup", path)]
        elif "cpu" in controllers.split(","):
            quotas += [
                _quota(_text(at / "cpu.cfs_quota_us") + " " + _text(at / "cpu.cfs_period_us"))
                for at in _upwards(root / "sys/fs/cgroup/cpu", path)
            ]
    return min((quota for quota in quotas if quota is not None), default=None)


def slow_governor(root: Path) -> str | None:
    """The governor that keeps a core's clock down, if there is one."""
    for directory in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")):
        governor = _text(directory / "scaling_governor").strip()
        driver = _text(directory / "scaling_driver").strip()
        if governor in _SLOW and not (governor == "powersave" and driver in _SELF_DRIVEN):
            return governor
    return None


def processor_findings(found: Processor, threads: int, *, measured: bool) -> Iterator[Finding]:
    """What keeps `threads` threads of torch from running at once; `measured` where the processor is the device."""
    if found.load is not None and (measured or found.load > found.cores):
        busy = found.load > found.cores
        effect = "MFU will read low" if measured else "launches and data come late"
        others = f": others compete for this processor, {effect}" if busy else ""
        yield Finding(
            "load", "note" if busy else "good",
            f"{found.load:.1f} on {found.cores} cores{others}",
        )  # fmt: skip
    if found.quota_cores is not None and found.quota_cores < threads:
        yield Finding(
            "quota", "note",
            f"the cgroup gives {found.quota_cores:.1f} cores to torch's {threads} threads: it stops them all for part "
            f"of each period; set OMP_NUM_THREADS={max(1, int(found.quota_cores))}, or raise the limit",
        )  # fmt: skip
    if found.usable_cores < threads:
        yield Finding(
            "affinity", "note",
            f"torch's {threads} threads take turns on {found.usable_cores} of {found.cores} cores; set "
            f"OMP_NUM_THREADS={found.usable_cores}, or widen the affinity (taskset, numactl, --cpu-bind)",
        )  # fmt: skip
    if found.slow_governor is not None:
        yield Finding(
            "governor", "note",
            f"{found.slow_governor} keeps the processor's clock down: cpupower frequency-set -g performance",
        )  # fmt: skip


def _upwards(mount: Path, path: str) -> Iterable[Path]:
    """A cgroup's directory and those above it. A container may have the mount alone."""
    below = mount / path.strip("/")
    return (below, *(parent for parent in below.parents if parent.is_relative_to(mount)))


def _quota(text: str) -> float | None:
    """Cores' worth of time from "quota period" in microseconds; None where there is no limit ("max", -1, nothing)."""
    try:
        quota, period = text.split()
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
