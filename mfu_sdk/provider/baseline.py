"""What runs of one configuration reach, for a run that wants to know: their MFU by device and number of ranks.

And what they are like step by step, in the form in which a process keeps it in its cache (`run.drift_files`): one that
begins with it is watched for drift from its first steps on.
"""

import json
import re
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from mfu_sdk.drift.watch import STATE_VERSION
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.detection import Following, window_of
from mfu_sdk.provider.rollup import Range, ratio
from mfu_sdk.provider.store import Row, Store

_FINGERPRINT: Final = re.compile(r"[0-9a-f]{16}")
MOST_RUNS: Final = 8
"""Runs whose baselines are told: as many as a process keeps."""
FIRST_STEPS: Final = 2600
"""Of each: a baseline takes 2,080 steps that are timed (`drift.detector.Tuning`)."""


@dataclass(frozen=True, slots=True)
class Reached:
    """The MFU of `runs` runs on one type of device with one number of ranks: least, median and most.

    A run's is Σ model FLOPs / Σ available FLOPs over its ranks. `step_time_s` is the median of the runs' mean steps.
    """

    gpu_type: str | None
    world_size: int | None
    runs: int
    low_mfu: float
    middle_mfu: float
    high_mfu: float
    timed_steps: int
    step_time_s: float | None


def reached(store: Store, fingerprint: str | None, span: Range, tenant: str | None) -> tuple[Reached, ...]:
    """What runs with `fingerprint` (`mfu.config.fingerprint`) reached in `span`: those of `tenant`, or all for None.

    Runs without FLOPs or a peak are in none. Raises `ConfigurationError` for what is no fingerprint.
    """
    if fingerprint is None or not _FINGERPRINT.fullmatch(fingerprint):
        shown = "no fingerprint" if fingerprint is None else repr(fingerprint[:40])
        raise ConfigurationError(
            f"fingerprint={shown}: must be 16 hexadecimal digits, as mfu.config.fingerprint on a run's spans"
        )
    rows = store.read(
        "baseline",
        fingerprint=fingerprint,
        since=span.since_unix_ns,
        until=span.until_unix_ns,
        everyone=int(tenant is None),
        tenant=tenant or "",
    )
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if ratio(row["model_flop"], row["available_flop"]) is not None:
            groups.setdefault((row["gpu_type"], row["world_size"]), []).append(row)
    return tuple(_of(gpu_type, world_size, runs) for (gpu_type, world_size), runs in groups.items())


def _of(gpu_type: str, world_size: int, runs: list[Row]) -> Reached:
    mfus = sorted(run["model_flop"] / run["available_flop"] for run in runs)
    steps_s = [found for run in runs if (found := ratio(run["step_time_s"], run["timed_steps"])) is not None]
    return Reached(
        gpu_type=gpu_type or None,
        world_size=None if world_size < 0 else world_size,
        runs=len(runs),
        low_mfu=mfus[0],
        middle_mfu=median(mfus),
        high_mfu=mfus[-1],
        timed_steps=sum(run["timed_steps"] or 0 for run in runs),
        step_time_s=median(steps_s) if steps_s else None,
    )


def learnt(store: Store, fingerprint: str, span: Range, tenant: str | None) -> tuple[list[Any], ...]:
    """The baselines of drift of the latest runs with `fingerprint`, the last one last, as plain data (`Watch.warm`).

    A run is judged by its first rank and its first steps, as the run itself would. One that is too short has none.
    """
    rows = store.read(
        "first_windows",
        fingerprint=fingerprint,
        since=span.since_unix_ns,
        until=span.until_unix_ns,
        everyone=int(tenant is None),
        tenant=tenant or "",
        runs=MOST_RUNS,
        steps=FIRST_STEPS,
    )
    runs: dict[tuple[str, str], Following] = {}
    for row in rows:
        if (window := window_of(row)) is not None:
            runs.setdefault((row["tenant"], row["run_id"]), Following()).add(window)
    latest = sorted(runs.values(), key=lambda each: each.last_start_unix_ns)
    return tuple(found for each in latest if (found := each.baselines()))


def to_json(fingerprint: str, found: tuple[Reached, ...], runs: tuple[list[Any], ...] = ()) -> str:
    """`{"fingerprint": …, "reached": [{"gpu_type", "world_size", "runs", "low_mfu", …}], "version": 1, "runs": […]}`.

    Version and runs are those of a file of the cache.
    """
    told: dict[str, Any] = {"fingerprint": fingerprint, "reached": [asdict(each) for each in found]}
    return json.dumps({**told, "version": STATE_VERSION, "runs": runs}, allow_nan=False)
