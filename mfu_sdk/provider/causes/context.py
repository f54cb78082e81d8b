"""What others show of a workload's kind: the clock and the links of its GPU type, and runs of the same work.

Claims are a tenant's word, so that no single workload sets what others are held against: a rate counts as reached
where two workloads reached it, a clock where four devices are behind the median. A workload whose own figures cannot be
right together (`accounting`), or that tells of somebody else's GPUs (`provider.contested`), is no measure for others.
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median
from types import MappingProxyType
from typing import Final

from mfu_sdk.provider.causes.accounting import accounting
from mfu_sdk.provider.causes.evidence import LINKS, Earlier, Evidence, Smaller
from mfu_sdk.provider.causes.gather import Gathered, Run, Unit
from mfu_sdk.provider.causes.links import SAME_BATCH

LEAST_DEVICES: Final = 4
HELD_SHARE: Final = 0.5
"""A device is held by power or heat where the driver says so for most of the time."""
_OWN_COMM: Final = "own comm"
_OWN: Final = ("data", "queue", "bus_bytes_per_s", "ideal_ratio")
"""What a workload's own process tells or does not, whatever others on its GPU type do."""
SIZE_FACTOR: Final = 4.0
"""Exchanges whose bytes differ by no more than this factor are of one message size."""


def complete(
    gathered: Sequence[Gathered],
    runs: Mapping[tuple[object, ...], Sequence[Run]],
    links: Mapping[str, str],
    node_gpus: Mapping[str, int],
    host_links: Mapping[str, str] = MappingProxyType({}),
    doubted: Collection[Unit] = (),
) -> list[Evidence]:
    """Each workload's evidence with its context.

    `runs` are all known runs by `Unit.kin`; `links` and `node_gpus` the best path and the GPUs of a machine by GPU
    type, `host_links` the best path of each machine, as the inventory has them. What is `doubted` is no measure for
    others.
    """
    sound = {each.unit for each in gathered if accounting(each.evidence) is None} - set(doubted)
    clocks: dict[_Kind, list[float]] = {}
    told: dict[object, set[str]] = {}
    observed: dict[str | None, int] = {}
    best: dict[str | None, str] = {gpu_type: link for gpu_type, link in links.items() if link in LINKS}
    for each in gathered:
        e, gpu_type = each.evidence, each.unit.gpu_type
        if each.unit in sound:
            clocks.setdefault(_kind(e), []).extend(each.clocks)
        for name, value in (("clock", e.clock), ("comm", e.comm), ("skew", e.skew)):
            # One rank has nobody to wait for, which says nothing of what is told.
            if value is not None and (name == "clock" or e.world_size != 1):
                told.setdefault(gpu_type, set()).add(name)
        own = told.setdefault((e.tenant, e.workload), set())
        own.update(name for name in _OWN if getattr(e, name) is not None)
        if e.comm is not None and e.world_size != 1:
            own.add(_OWN_COMM)
        observed[gpu_type] = max(observed.get(gpu_type, 0), *each.devices_by_host.values(), 0)
        if e.link_best in LINKS:
            best[gpu_type] = max(best.get(gpu_type, "none"), e.link_best, key=LINKS.index)
    medians = {name: median(values) for name, values in clocks.items() if len(values) >= LEAST_DEVICES}
    machines = {each.unit: _one_machine(each.unit, node_gpus, observed) for each in gathered}
    rates = _Rates([each for each in gathered if each.unit in sound], machines, best)
    fewer = _fewer_ranks(gathered, runs)
    kin = _kin([each for each in gathered if each.unit in sound], machines)
    found = []
    for each in gathered:
        e, unit = each.evidence, each.unit
        untold = {"clock", "comm", "skew"} - told.get(unit.gpu_type, set())
        untold.update({*_OWN, _OWN_COMM} - told[e.tenant, e.workload])
        found.append(
            replace(
                e,
                untold=frozenset(untold),
                link=_placed(e, best.get(unit.gpu_type), host_links),
                cohort_clock=_cohort(e, medians),
                type_link=best.get(unit.gpu_type),
                one_machine=machines[unit],
                best_bus_bytes_per_s=rates.best(each, best.get(unit.gpu_type)),
                least_comm=rates.least_comm(each),
                crossing_bytes_per_s=rates.crossing(each),
                kin_mfu=_kin_mfu(e, kin),
                smaller=_smaller(each, fewer),
                earlier=_earlier(e, runs.get(unit.kin, ())),
            )
        )
    return found


_Kind = tuple[str | None, str | None, bool, bool | None]


def _kind(e: Evidence) -> _Kind:
    """What clocks are held against one another: of one GPU type in one phase, whole devices apart from slices.

    A device that nothing holds back draws less than its limit allows, and says nothing of the clock that a device at
    that limit can have.
    """
    is_held = None if e.cap is None else e.cap + (e.heat or 0.0) >= HELD_SHARE
    return e.gpu_type, _load(e.phase), e.mig_profile is not None, is_held


def _cohort(e: Evidence, medians: Mapping[_Kind, float]) -> float | None:
    """The clock of its kind; where nobody says what holds it that of held ones, which is the lower one to be asked."""
    gpu_type, load, is_slice, is_held = _kind(e)
    if is_held is not None:
        return medians.get((gpu_type, load, is_slice, is_held))
    known = [medians[kind] for held in (None, True, False) if (kind := (gpu_type, load, is_slice, held)) in medians]
    return min(known, default=None)


def _placed(e: Evidence, type_link: str | None, host_links: Mapping[str, str]) -> str | None:
    """The path between its ranks; where it tells none what its place allows, if that is worse than there is.

    Ranks on several machines meet over the network, and on one over no better path than that machine has.
    """
    if e.link is not None or not e.hosts or e.world_size is None or e.world_size < 2:
        return e.link
    host, *others = e.hosts
    if others:
        return "network"
    link = host_links.get(host)
    is_worse = link in LINKS and type_link in LINKS and LINKS.index(link) < LINKS.index(type_link)
    return link if is_worse else None


def _load(phase: str | None) -> str | None:
    """What draws power alike: under one power limit training runs at a lower clock than decoding does."""
    return "train" if phase == "eval" else phase


def _one_machine(unit: Unit, node_gpus: Mapping[str, int], observed: Mapping[str | None, int]) -> bool | None:
    if unit.world_size is None:
        return None
    if (owned := node_gpus.get(unit.gpu_type or "")) is not None:
        return unit.world_size <= owned
    seen = observed.get(unit.gpu_type, 0)
    # Machines may be larger than what was seen at work on one of them, and one device says nothing of its machine.
    return True if unit.world_size <= seen else False if seen > 1 else None


_Links = tuple[str | None, bool, float | None]
_Rate = tuple[float, float, tuple[str, str | None], int | None]


class _Rates:
    """The measured rates of the best links, by GPU type, place and layout, sorted by the bytes of a step.

    Bytes of a step say how large a message is only among those that split alike: ranks that share each product
    exchange many small ones where replicas exchange a few large ones.
    """

    def __init__(
        self, gathered: Sequence[Gathered], machines: Mapping[Unit, bool | None], best: Mapping[str | None, str]
    ) -> None:
        self._kinds: dict[_Links, list[_Rate]] = {}
        self._machines = machines
        for each in gathered:
            rate = max(each.bus_peak_bytes_per_s or 0.0, each.evidence.bus_bytes_per_s or 0.0)
            if rate > 0 and each.comm_bytes_per_step:
                name = each.unit.tenant, each.unit.workload
                link, type_link = each.evidence.link, best.get(each.unit.gpu_type)
                within = link != "network"
                if within and link in LINKS and type_link in LINKS and LINKS.index(link) < LINKS.index(type_link):
                    # What a worse path reaches says nothing of the best one.
                    continue
                kind = self._kinds.setdefault((each.unit.gpu_type, within, each.ranks_per_replica), [])
                kind.append((each.comm_bytes_per_step, rate, name, each.unit.world_size))
        for kind in self._kinds.values():
            kind.sort()

    def best(self, each: Gathered, type_link: str | None) -> float | None:
        """What two workloads on the best fabric for these ranks reached at this size, or these links were measured."""
        e = each.evidence
        within = self._machines[each.unit] or e.link not in (None, "network")
        own = each.bus_peak_bytes_per_s
        if type_link in LINKS and e.link in LINKS and within and LINKS.index(e.link) < LINKS.index(type_link):
            # It was measured on the worse path.
            own = None
        size = each.comm_bytes_per_step
        if size is None:
            return own
        reached = self._reached((each.unit.gpu_type, within, each.ranks_per_replica), size)
        return own if reached is None else max(reached, own or 0.0)

    def least_comm(self, each: Gathered) -> float | None:
        """The share of a step that its gradients alone take on the network, at what as many ranks reached there."""
        size, unit = each.gradient_bytes_per_step, each.unit
        if size is None or not each.step_s or self._machines[unit] is not False:
            return None
        rate = self._reached((unit.gpu_type, False, each.ranks_per_replica), size, unit.world_size)
        return None if rate is None else size / rate / each.step_s

    def crossing(self, each: Gathered) -> float | None:
        """What as many ranks on one machine reached with as many bytes a step as cross the PCIe bus here each way."""
        e, unit = each.evidence, each.unit
        if e.pcie_tx_bytes_per_s is None or e.pcie_rx_bytes_per_s is None or not each.step_s:
            return None
        size = min(e.pcie_tx_bytes_per_s, e.pcie_rx_bytes_per_s) * each.step_s
        return self._reached((unit.gpu_type, True, each.ranks_per_replica), size, unit.world_size)

    def _reached(self, links: "_Links", size: float, ranks: int | None = None) -> float | None:
        """What two workloads reached with exchanges of this size, of `ranks` ranks where that is asked for."""
        kind = self._kinds.get(links, [])
        fastest: dict[tuple[str, str | None], float] = {}
        for index in range(bisect_left(kind, (size / SIZE_FACTOR,)), len(kind)):
            bytes_per_step, rate, name, world_size = kind[index]
            if bytes_per_step > size * SIZE_FACTOR:
                break
            if ranks is None or world_size == ranks:
                fastest[name] = max(fastest.get(name, 0.0), rate)
        reached = sorted(fastest.values(), reverse=True)
        return reached[1] if len(reached) > 1 else None


_Kin = dict[tuple[object, ...], list[tuple[float, float, tuple[str, str | None]]]]


def _kin(gathered: Sequence[Gathered], machines: Mapping[Unit, bool | None]) -> _Kin:
    """By structure and GPU type, of training on one machine: MFU without waits for data, a step's tokens, and whose."""
    found: _Kin = {}
    for each in gathered:
        e = each.evidence
        if e.phase == "train" and e.family and machines[each.unit] and e.mfu and e.rank_tokens and e.data is not None:
            own = e.mfu / max(1 - e.data, 1e-9), e.rank_tokens, (e.tenant, e.workload)
            found.setdefault((e.family, e.gpu_type, e.peak_dtype), []).append(own)
    return found


def _kin_mfu(e: Evidence, kin: _Kin) -> float | None:
    """What two other workloads of its structure reached with steps of its size."""
    if e.rank_tokens is None:
        return None
    most: dict[tuple[str, str | None], float] = {}
    for mfu, rank_tokens, name in kin.get((e.family, e.gpu_type, e.peak_dtype), ()):
        alike = e.rank_tokens / SIZE_FACTOR <= rank_tokens <= e.rank_tokens * SIZE_FACTOR
        if alike and name != (e.tenant, e.workload):
            most[name] = max(most.get(name, 0.0), mfu)
    reached = sorted(most.values(), reverse=True)
    return reached[1] if len(reached) > 1 else None


_Fewer = dict[tuple[object, ...], list[tuple[str | None, Smaller]]]


def _fewer_ranks(gathered: Sequence[Gathered], runs: Mapping[tuple[object, ...], Sequence[Run]]) -> _Fewer:
    """What the same structure reached by number of ranks: of a tenant, on one GPU type, in one phase, by workload."""
    found: _Fewer = {}
    key: tuple[object, ...]
    for each in gathered:
        e = each.evidence
        if e.world_size and e.rank_tokens and e.tokens_per_s:
            key = e.tenant, e.family, e.gpu_type, e.phase
            found.setdefault(key, []).append((e.workload, Smaller(e.world_size, e.rank_tokens, e.tokens_per_s)))
    for kin, earlier in runs.items():
        tenant, workload, family, gpu_type, world_size, phase = kin
        for run in earlier:
            if isinstance(world_size, int) and run.rank_tokens and run.told.tokens_per_s:
                key = tenant, family, gpu_type, phase
                name = workload if isinstance(workload, str) else None
                found.setdefault(key, []).append((name, Smaller(world_size, run.rank_tokens, run.told.tokens_per_s)))
    return found


def _smaller(each: Gathered, fewer: _Fewer) -> Smaller | None:
    """The nearest number of ranks below, and the fastest at it: of this workload, else of one that does as much a rank.

    The batch of another workload, larger or smaller, is not what this one's was.
    """
    unit, rank_tokens = each.unit, each.evidence.rank_tokens
    if unit.world_size is None or unit.family is None:
        return None
    size = unit.world_size
    known = [
        (name, told)
        for name, told in fewer.get((unit.tenant, unit.family, unit.gpu_type, unit.phase), ())
        if told.world_size < size
    ]
    own = [told for name, told in known if name == unit.workload]
    alike = [told for _, told in known if rank_tokens is not None and told.rank_tokens * SAME_BATCH <= rank_tokens]
    return max(own or alike, key=lambda told: (told.world_size, told.tokens_per_s), default=None)


def _earlier(e: Evidence, runs: Sequence[Run]) -> tuple[Earlier, ...]:
    own = [run.start_unix_s for run in runs if run.told.run_id in e.run_ids]
    if not own:
        return ()
    began = min(own)
    return tuple(run.told for run in runs if run.start_unix_s < began and run.told.run_id not in e.run_ids)
