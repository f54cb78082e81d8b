"""How nodes are: Xids, ECC errors, clocks against their kind, and what of their steps and runs failed. Pure.

An Xid is the *last* one that a GPU showed, and dcgm-exporter goes on showing it until it or the driver is restarted
(NVIDIA/dcgm-exporter issue 500, NVIDIA/DCGM issue 277): how often it is told is no number of errors, a second error
with the same code cannot be seen, and one that another code replaced between two scrapes is lost. What is counted is
how often a code appeared; ECC errors are counters, and what is counted is by how much they rose.

A clock is held against the median of GPUs of its type, each over the time in which kernels ran: 0.88 of it is where the
cause `thermal_or_power` draws the line. Different work draws different power, so a low clock is to be looked at, and is
no proof. Rates of failed steps and runs have no line: what is usual differs by tenant, and they are told beside.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Final, Literal

from mfu_sdk.provider.fleet.gpu import Gpu
from mfu_sdk.provider.fleet.xid import xid

State = Literal["unhealthy", "watch", "unknown", "healthy"]
STATES: Final[tuple[State, ...]] = ("unhealthy", "watch", "unknown", "healthy")
CLOCK_RATIO: Final = 0.88
LEAST_BUSY_S: Final = 1800.0
"""A clock is judged where kernels ran for half an hour: before, it may be the clock of waking up."""
LEAST_COHORT: Final = 3
"""GPUs that a median is taken over, at least: with two, which of them is right?"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A GPU began to show `value`, an Xid or a count of ECC errors, after `previous`, 0 for none.

    `known_unix_ns` is when the metric was first told; `last_unix_ns` when the value was last shown.
    """

    host: str
    gpu: str
    metric: Literal["xid", "double", "single"]
    value: int
    previous: int
    at_unix_ns: int
    known_unix_ns: int
    last_unix_ns: int


@dataclass(frozen=True, slots=True)
class XidSeen:
    """A code on a node: how often it appeared in the range, when last, on which GPUs, and what is to be done.

    `times` is 0 and `last_at`, ISO 8601 in UTC, None where it has stood since before the range.
    """

    code: int
    times: int
    last_at: str | None
    gpus: tuple[str, ...]
    meaning: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Failures:
    """Of a node: steps that failed, runs that ended, and those of them that failed; None where that is not told."""

    failed_steps: int | None = None
    runs: int | None = None
    failed_runs: int | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """How a node is, and in `advice` what to do about it; the ECC errors are those of the range, None: not told.

    `clock_ratio` is that of its slowest GPU over the median of its type, `slow_gpus` are those below 0.88.
    """

    host: str
    state: State
    advice: str | None
    xids: tuple[XidSeen, ...]
    double_bit_errors: int | None
    single_bit_errors: int | None
    clock_ratio: float | None
    slow_gpus: tuple[str, ...]


def clock_ratios(gpus: Iterable[Gpu]) -> dict[str, float]:
    """Each GPU's clock over its type's median, of GPUs that were busy for long enough; slices of a GPU share one."""
    clocks: dict[str, dict[str, float]] = {}
    for each in gpus:
        if each.gpu_type is not None and each.busy_mhz is not None and each.busy_s >= LEAST_BUSY_S:
            of_type = clocks.setdefault(each.gpu_type, {})
            of_type[each.gpu] = max(of_type.get(each.gpu, 0.0), each.busy_mhz)
    found: dict[str, float] = {}
    for of_type in clocks.values():
        if len(of_type) >= LEAST_COHORT:
            middle = median(of_type.values())
            found |= {gpu: mhz / middle for gpu, mhz in of_type.items()}
    return found


def judge(gpus: Sequence[Gpu], shown: Iterable[Shown], since_unix_ns: int) -> dict[str, Health]:
    """Every host with GPUs that were watched, by name."""
    ratios = clock_ratios(gpus)
    by_host: dict[str, list[Gpu]] = {}
    for each in gpus:
        by_host.setdefault(each.host, []).append(each)
    rows: dict[str, list[Shown]] = {}
    for row in shown:
        rows.setdefault(row.host, []).append(row)
    return {host: _judged(host, of, rows.get(host, ()), ratios, since_unix_ns) for host, of in by_host.items()}


def _judged(
    host: str, gpus: Sequence[Gpu], shown: Sequence[Shown], ratios: Mapping[str, float], since_unix_ns: int
) -> Health:
    xids = _xids(shown, since_unix_ns)
    told = [any(getattr(each, f"{name}_samples") for each in gpus) for name in ("double", "single")]
    double, single = (
        _rise(shown, name, since_unix_ns) if known else None
        for name, known in zip(("double", "single"), told, strict=True)
    )
    clocks = {each.gpu: ratios[each.gpu] for each in gpus if each.gpu in ratios}
    slow = tuple(sorted(gpu for gpu, of in clocks.items() if of < CLOCK_RATIO))
    advice: list[tuple[State, str]] = []
    for seen in xids:
        weight = xid(seen.code).weight
        if weight != "application":
            state: State = "unhealthy" if weight == "node" else "watch"
            advice.append((state, f"Xid {seen.code} ({seen.meaning}): {seen.remedy}."))
    if double and not any(seen.code in (48, 94, 95) for seen in xids):
        # Volatile errors that the driver has an Xid for are told by that.
        advice.append(("unhealthy", f"{double} double-bit ECC errors: drain the node, reset the GPU; replace it if new"
                       " ones come."))  # fmt: skip
    if slow:
        advice.append(("watch", f"The clock of {len(slow)} of its GPUs is down to {min(clocks.values()):.0%} of their"
                       " kind's: check cooling, power limit and power brake, unless its work differs."))  # fmt: skip
    known = any(each.xid_samples for each in gpus) or any(told) or bool(clocks)
    states: list[State] = [state for state, _ in advice] or ["healthy" if known else "unknown"]
    worst: State = min(states, key=STATES.index)
    told_first = sorted(advice, key=lambda each: STATES.index(each[0]))
    return Health(
        host,
        worst,
        " ".join(sentence for _, sentence in told_first) or None,
        xids,
        double,
        single,
        min(clocks.values(), default=None),
        slow,
    )


def _xids(shown: Iterable[Shown], since_unix_ns: int) -> tuple[XidSeen, ...]:
    codes: dict[int, list[Shown]] = {}
    for row in shown:
        # What ended before the range is of an earlier report.
        if row.metric == "xid" and row.last_unix_ns >= since_unix_ns:
            codes.setdefault(row.value, []).append(row)
    found = []
    for code, rows in codes.items():
        new = [row.at_unix_ns for row in rows if row.at_unix_ns >= since_unix_ns]
        known = xid(code)
        gpus = tuple(sorted({row.gpu for row in rows}))
        last_at = _iso(max(new)) if new else None
        found.append(XidSeen(code, len(new), last_at, gpus, known.meaning, known.remedy))
    by_code = sorted(found, key=lambda seen: seen.code)
    return tuple(sorted(by_code, key=lambda seen: seen.last_at or "", reverse=True))


def _rise(shown: Iterable[Shown], metric: str, since_unix_ns: int) -> int:
    """By how much a counter rose in the range; one that fell was reset, and has risen to what it shows since."""
    total = 0
    for row in shown:
        if row.metric != metric or row.at_unix_ns < since_unix_ns:
            continue
        if row.previous == 0:
            # A counter that was never told before may have stood there for long.
            first = row.at_unix_ns - row.known_unix_ns < 300 * 10**9
            total += 0 if first else row.value
        else:
            total += row.value - row.previous if row.value >= row.previous else row.value
    return total


def _iso(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns // 10**9, UTC).isoformat().replace("+00:00", "Z")
