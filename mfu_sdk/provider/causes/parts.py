"""What stands out among a workload's hours, as evidence of its own, and clocks that only the exporter tells. Pure.

A part is held against the other hours of the same configuration: the same work on the same devices. A clock has
rivals there that its hours do not show: a limit that was lowered for all of a GPU type, and work that waits less and so
draws more. What the clocks of the type did meanwhile is taken off, and of work that waited more nothing is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, median
from typing import Final

from mfu_sdk.provider.causes.context import LEAST_DEVICES
from mfu_sdk.provider.causes.evidence import Evidence, Rest
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS
from mfu_sdk.provider.causes.gather import Gathered, Unit, clock_of, unit_of
from mfu_sdk.provider.causes.hours import SIGNALS, Hour, Level, Stretch, level, worst
from mfu_sdk.provider.rollup import Usage

Hours = Mapping[Unit, tuple[Hour, ...]]
_STEADY: Final = ("train", "eval")
"""Phases in which the same configuration draws the same power at any hour; a server's load follows the day."""


def with_parts(evidence: Sequence[Evidence], units: Sequence[Unit], hours: Hours) -> list[Evidence]:
    """`evidence` with the parts that stand out; `units` are whose each is."""
    types = _Clocks(hours)
    return [replace(e, parts=_parts(e, hours.get(unit, ()), types)) for e, unit in zip(evidence, units, strict=True)]


def _parts(e: Evidence, hours: Sequence[Hour], types: "_Clocks") -> tuple[Evidence, ...]:
    found = []
    for signal in SIGNALS:
        stretch = worst(hours, signal)
        if stretch is None:
            continue
        inside = hours[stretch.first : stretch.end]
        here, there = level(inside), level([hours[at] for at in stretch.others])
        # Without a fingerprint another configuration may have been at work there.
        rest = None if e.fingerprint is None else _rest(e, hours, stretch, here, there, types)
        buses = [rate for rate in (e.best_bus_bytes_per_s, rest and rest.bus_bytes_per_s) if rate]
        found.append(
            replace(
                e,
                worse=signal,
                since_unix_s=inside[0].start_unix_s,
                until_unix_s=inside[-1].start_unix_s + 3600,
                rest=rest,
                time_s=here.time_s,
                mfu=here.mfu,
                data=here.data,
                # One rank has nobody to wait for, and waits that ranks do not tell apart are known of the day alone.
                comm=e.comm if e.world_size == 1 else here.comm if here.skew is not None else None,
                skew=e.skew if e.world_size == 1 else here.skew,
                bus_bytes_per_s=here.bus_bytes_per_s or e.bus_bytes_per_s,
                best_bus_bytes_per_s=max(buses, default=None),
                clock=here.clock,
                slowest_clock=here.slowest_clock if (e.world_size or 1) > 1 else None,
            )
        )
    return tuple(found)


def _rest(e: Evidence, hours: Sequence[Hour], stretch: Stretch, here: Level, there: Level, types: "_Clocks") -> Rest:
    clock = there.clock if there.slowest_clock is None else there.slowest_clock
    if clock is not None:
        change = types.change(
            e.gpu_type,
            [hour.start_unix_s for hour in hours[stretch.first : stretch.end]],
            [hours[at].start_unix_s for at in stretch.others],
        )
        waited = (there.data or 0.0) + (there.comm or 0.0) - (here.data or 0.0) - (here.comm or 0.0)
        is_comparable = change is not None and waited < MATERIAL_LOSS and e.phase in _STEADY
        clock = clock * min(1.0, change) if is_comparable and change is not None else None
    return Rest(there.data, there.comm, there.bus_bytes_per_s, clock, there.skew, there.mfu)


class _Clocks:
    """How the clocks of each GPU type went from hour to hour: the median over workloads, each over its own median."""

    def __init__(self, hours: Hours) -> None:
        told: dict[tuple[str | None, int], list[float]] = {}
        for unit, of in hours.items():
            clocks = {hour.start_unix_s: clock for hour in of if (clock := level((hour,)).clock) is not None}
            middle = median(clocks.values()) if clocks else 0.0
            if middle > 0:
                for start, clock in clocks.items():
                    told.setdefault((unit.gpu_type, start), []).append(clock / middle)
        # The workload itself is one of them, so that four others are.
        self._median = {key: median(values) for key, values in told.items() if len(values) > LEAST_DEVICES}

    def change(self, gpu_type: str | None, inside: Sequence[int], others: Sequence[int]) -> float | None:
        """The clocks in some hours over those in others; None where too few workloads tell them."""
        here, there = ([self._median.get((gpu_type, start)) for start in of] for of in (inside, others))
        if None in here or None in there:
            return None
        return mean(each for each in here if each) / mean(each for each in there if each)


def clocked(
    gathered: Sequence[Gathered], hours: Hours, usages: Sequence[Usage], seen: Mapping[str, Mapping[int, float]]
) -> tuple[list[Gathered], dict[Unit, tuple[Hour, ...]]]:
    """Evidence and hours with clocks from the provider's exporter, where the workload tells none itself.

    `seen` are clocks in MHz by device and hour. An exporter does not tell whose work it saw: only hours count in which
    nobody else had the device, and only where all of a workload's devices were seen.
    """
    devices: dict[Unit, set[str]] = {}
    users: dict[str, set[Unit]] = {}
    for usage in usages:
        if usage.sums.device_s and usage.mig_profile is None:
            devices.setdefault(unit_of(usage), set()).add(usage.device)
            users.setdefault(usage.device, set()).add(unit_of(usage))
    at_work = {unit: {hour.start_unix_s for hour in of} for unit, of in hours.items()}
    found, filled = [], dict(hours)
    for each in gathered:
        own = sorted(devices.get(each.unit, ()))
        if each.evidence.clock is not None or not own or not all(device in seen for device in own):
            found.append(each)
            continue
        taken = {start for device in own for other in users[device] - {each.unit} for start in at_work.get(other, ())}
        clocks: dict[int, list[float]] = {}
        for start in at_work.get(each.unit, set()) - taken:
            told = [clock_of(each.unit.gpu_type, seen[device][start]) for device in own if start in seen[device]]
            known = [clock for clock in told if clock is not None]
            if len(known) == len(own):
                clocks[start] = known
        filled[each.unit] = tuple(_told(hour, clocks.get(hour.start_unix_s)) for hour in hours.get(each.unit, ()))
        whole = level(filled[each.unit])
        # Of hours that are not known the clock may be any: the day's is known where most of it is.
        is_known = sum(hour.clock_known_s for hour in filled[each.unit]) >= 0.5 * whole.time_s > 0
        if is_known:
            each = replace(
                each,
                evidence=replace(
                    each.evidence,
                    clock=whole.clock,
                    slowest_clock=whole.slowest_clock if (each.unit.world_size or 1) > 1 else None,
                ),
                clocks=tuple(mean(column) for column in zip(*clocks.values(), strict=True)),
            )
        found.append(each)
    return found, filled


def _told(hour: Hour, clocks: Sequence[float] | None) -> Hour:
    if clocks is None:
        return hour
    return replace(
        hour,
        clock_s=mean(clocks) * hour.time_s,
        clock_known_s=hour.time_s,
        slowest_s=min(clocks) * hour.time_s,
        slowest_known_s=hour.time_s,
    )
