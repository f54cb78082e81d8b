"""The roll-up's sums to rows of use: which allocation each device worked under, at which peak, and how far to trust it.

A device is its UUID's allocation's, then its node's; among several of one tenant the allocation id that the run tells
decides, and where it tells none the row is spread over them by the hours they hold. The tenant is the receiver's word,
never the row's. What no allocation covers is a row of its own in the ledger, taken out of what is unsold.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from types import MappingProxyType
from typing import Any, Final, get_args

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.peak import catalogue
from mfu_sdk.peak.theory import theoretical
from mfu_sdk.provider.attempts import NOTHING, Lost, Redone
from mfu_sdk.provider.books import Holdings, mig
from mfu_sdk.provider.contested import Contested
from mfu_sdk.provider.economics.inputs import HOUR_NS, Held, Ledger, Losses, Trust, Used
from mfu_sdk.provider.economics.pricing import Claim
from mfu_sdk.provider.rollup import Sums, Usage

_CLAIMED: Final = {
    "poor_topology": "topology",
    "under_batched_inference": "under_batch",
    "thermal_or_power": "clock",
    "configuration_drift": "drift",
}
_REFERENCE: Final = ("bfloat16", "float16", "float32")
_MOST_MFU: Final = 1.0
# Clocks of a tenant's host and of the provider's records differ by seconds; an hour is 3600.
_SLACK: Final = 1.005
# Peaks are measured below what is on paper at the highest clock (`causes.accounting.PEAK_BAND`).
_MOST_OF_PAPER: Final = 1.05

_LEAST_LAST: Final[tuple[Trust, ...]] = get_args(Trust)

Testimony = Mapping[tuple[object, ...], Trust]
"""By `Usage.identity` what is known of a row beside its own word: "witnessed" or "contradicted"."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """The ledger, with rows for what no allocation covers; rows of use; sentences on what was left out.

    `trust` is what stands behind each row of the roll-up, by `Usage.identity`; of one that several allocations may be
    meant by the least. `elsewhere_hours` are GPU-hours of steps on GPUs of other tenants, which are in no figure.
    """

    ledger: Ledger
    used: tuple[Used, ...]
    notes: tuple[str, ...]
    trust: Mapping[tuple[object, ...], Trust] = field(default_factory=dict)
    elsewhere_hours: float = 0.0


def reference_peaks(gpu_types: Iterable[str], usages: Iterable[Usage]) -> dict[str, float]:
    """Dense bf16 FLOP/s on paper by GPU type; of a type without one on paper, the peak that its runs measured."""
    found = {gpu_type: peak for gpu_type in gpu_types if (peak := _on_paper(gpu_type)) is not None}
    measured: dict[str, tuple[float, float]] = {}
    for usage in usages:
        sums, gpu_type = usage.sums, usage.gpu_type
        if gpu_type in found or gpu_type is None or usage.mig_profile is not None:
            continue
        if sums.available_flops and sums.device_s:
            flops, seconds = measured.get(gpu_type, (0.0, 0.0))
            measured[gpu_type] = (flops + sums.available_flops, seconds + sums.device_s)
    return found | {gpu_type: flops / seconds for gpu_type, (flops, seconds) in measured.items()}


def adapted(
    ledger: Ledger,
    holdings: Holdings,
    usages: Sequence[Usage],
    peaks: Mapping[str, float],
    claims: Sequence[Claim] = (),
    done_again: Redone = NOTHING,
    testimony: Testimony = MappingProxyType({}),
    outside_s: Mapping[tuple[str, str, str], float] = MappingProxyType({}),
    contests: Sequence[Contested] = (),
) -> Adapted:
    """Rows of use for `ledger`, whose hosts are those of `holdings`.

    Rows of `contests` are contradicted. Those whose steps were mostly on another tenant's GPU are in no allocation.
    """
    places = _Places(ledger, holdings)
    about = _About(claims, usages)
    contested = {(each.tenant, each.device) for each in contests}
    elsewhere = {(each.tenant, each.device) for each in contests if is_elsewhere(each)}
    placed: list[tuple[Used, int, float]] = []
    identities: list[tuple[object, ...]] = []
    trust: dict[tuple[object, ...], Trust] = {}
    elsewhere_hours = 0.0
    strays: dict[str, int] = {}
    beyond: dict[tuple[str, str], float] = {}
    for usage in usages:
        if (usage.tenant, usage.device) in elsewhere:
            elsewhere_hours += (usage.sums.device_hours or 0.0) * float(_sm_share(usage) or 0)
            trust[usage.identity] = "contradicted"
            continue
        host = places.host(usage)
        if host is None or (host, usage.gpu_type) not in places.owned:
            name = usage.host or usage.device
            strays[name] = strays.get(name, 0) + 1
            continue
        row = _row(usage, host, peaks, about, done_again.lost.get(usage.identity))
        if row is not None:
            beyond_s = outside_s.get((usage.tenant, usage.host or "", usage.device), 0.0)
            if beyond_s > (_SLACK - 1) * (usage.sums.device_s or 0.0):
                beyond[usage.tenant, usage.device] = beyond_s
            is_contested = (usage.tenant, usage.device) in contested
            said: Trust = "contradicted" if is_contested else testimony.get(usage.identity, "claimed")
            row = replace(row, trust=said)
            for index, weight in places.of(usage, host, row):
                placed.append((row, index, weight))
                identities.append(usage.identity)
    ledger = places.ledger()
    used = _used(ledger, placed, places.recorded, beyond)
    for identity, row in zip(identities, used, strict=True):
        known = trust.get(identity)
        if known is None or _LEAST_LAST.index(row.trust) > _LEAST_LAST.index(known):
            trust[identity] = row.trust
    notes = (
        *_stray(strays), *places.notes(), *_beyond(beyond), *_gainsaid(used, contested), *_contests(contests),
        *done_again.notes,
    )  # fmt: skip
    return Adapted(ledger, used, notes, trust, elsewhere_hours)


def is_elsewhere(each: Contested) -> bool:
    """Whether a tenant's steps on a device were mostly at times when another held it, by the records."""
    return each.why == "held_by_another" and each.hours > 0.5 * each.of_hours


def claims_of(findings: Iterable[Mapping[str, Any]]) -> tuple[Claim, ...]:
    """Findings over the ledger's window, given as mappings with the keys of the report's `causes`."""
    return tuple(
        Claim(
            finding["tenant"],
            finding.get("workload"),
            finding.get("gpu_type"),
            finding["cause"],
            float(finding["loss_share"]),
            float(finding.get("confidence") or 0.0),
            str(finding.get("remedy") or ""),
            finding.get("world_size"),
            finding.get("phase"),
            finding.get("run_id"),
        )
        for finding in findings
    )


class _About:
    """Which claims are about which rows: those of its workload and phase, in the configuration of the claim's run."""

    def __init__(self, claims: Sequence[Claim], usages: Iterable[Usage]) -> None:
        self._claims = claims
        self._of: dict[tuple[object, ...], list[int]] = {}
        for place, claim in enumerate(claims):
            key = (claim.tenant, claim.workload, claim.gpu_type, claim.world_size, claim.phase)
            self._of.setdefault(key, []).append(place)
        self._configurations: dict[int, set[tuple[object, ...]]] = {}
        for usage in usages:
            for place in self._of.get(_key(usage), ()):
                if claims[place].run_id in (None, *usage.run_ids):
                    self._configurations.setdefault(place, set()).add(_configuration(usage))

    def of(self, usage: Usage) -> tuple[int, ...]:
        """The places of the claims about a row."""
        configuration = _configuration(usage)
        return tuple(
            place for place in self._of.get(_key(usage), ()) if configuration in self._configurations.get(place, ())
        )

    def losses(self, places: Iterable[int]) -> Losses:
        """What those of them claim that the waterfall does not know from measured times."""
        claimed = {"topology": 0.0, "under_batch": 0.0, "clock": 0.0, "drift": 0.0}
        for place in places:
            claim = self._claims[place]
            if claim.cause in _CLAIMED:
                claimed[_CLAIMED[claim.cause]] = max(claimed[_CLAIMED[claim.cause]], claim.loss_share)
        return Losses(**claimed)


class _Places:
    """Where rows of use belong in a ledger, and the rows that it lacks."""

    def __init__(self, ledger: Ledger, holdings: Holdings) -> None:
        self._ledger, self._holdings = ledger, holdings
        self.recorded = len(ledger.held)
        self.owned = {(node.host, node.gpu_type) for node in ledger.owned}
        self._by_host: dict[tuple[str, str], list[int]] = {}
        for index, held in enumerate(ledger.held):
            self._by_host.setdefault((held.host, held.tenant), []).append(index)
        self._by_uuid: dict[str, set[tuple[str, str | None, str]]] = {}
        named: set[tuple[str, str | None, str]] = set()
        unnamed: set[tuple[str, str | None, str]] = set()
        for allocation in holdings.inventory.allocations:
            key = (allocation.tenant, allocation.allocation_id, allocation.host)
            for uuid in allocation.gpu_uuids:
                self._by_uuid.setdefault(uuid, set()).add(key)
            # Where two allocations have one name, one that does not name its GPUs may mean any.
            (named if len(allocation.gpu_uuids) == allocation.gpus else unnamed).add(key)
        self._whole = named - unnamed
        self._extra: dict[tuple[str, str, str], tuple[int, dict[str, int]]] = {}

    def host(self, usage: Usage) -> str | None:
        """Its host by the provider's records of the UUID, else as the run tells it."""
        for uuid in (usage.device, usage.parent or ""):
            node = self._holdings.node_of(uuid)
            if node is not None:
                return node.host
            hosts = {host for _, _, host in self._by_uuid.get(uuid, ())}
            if len(hosts) == 1:
                return hosts.pop()
        return usage.host

    def of(self, usage: Usage, host: str, row: Used) -> list[tuple[int, float]]:
        """The indices of the allocations that the row was under, with its share for each."""
        mine = [
            index
            for index in self._by_host.get((host, usage.tenant), [])
            if self._ledger.held[index].gpu_type == row.gpu_type
        ]
        named = self._by_uuid.get(usage.device, set()) | self._by_uuid.get(usage.parent or "", set())
        candidates = [index for index in mine if self._key(index) in named]
        if not candidates:
            # A UUID that the records know, and that none of them names, is none of those that they name.
            is_known = bool(named) or any(self._holdings.node_of(uuid) for uuid in (usage.device, usage.parent or ""))
            candidates = [index for index in mine if not (is_known and self._key(index) in self._whole)]
        told = [index for index in candidates if self._ledger.held[index].allocation_id == usage.allocation_id]
        if usage.allocation_id is not None and told:
            candidates = told
        if not candidates:
            return [(self._uncovered(usage, host, row), 1.0)]
        whole = sum(self._ledger.held[index].gpu_ns for index in candidates)
        return [(index, self._ledger.held[index].gpu_ns / whole) for index in candidates]

    def ledger(self) -> Ledger:
        """The ledger, with rows for what no allocation covers."""
        owned, held = list(self._ledger.owned), list(self._ledger.held)
        # A host may be a row for each stretch of time; its last one gives the hours.
        last = {(node.host, node.gpu_type): place for place, node in enumerate(owned)}
        for (tenant, host, gpu_type), (_, devices) in self._extra.items():
            place = last[host, gpu_type]
            node = owned[place]
            taken = min(sum(devices.values()), node.unsold_ns)
            cost = _part(node.unsold_cost, taken, node.unsold_ns)
            left = None if node.unsold_cost is None or cost is None else node.unsold_cost - cost
            owned[place] = replace(node, unsold_ns=node.unsold_ns - taken, unsold_cost=left)
            held.append(Held(tenant, None, None, host, gpu_type, None, len(devices), taken, cost, None, None, None))
        return Ledger(self._ledger.since_unix_ns, self._ledger.until_unix_ns, tuple(owned), tuple(held))

    def notes(self) -> list[str]:
        """A sentence for each tenant whose steps no allocation covers."""
        hours: dict[str, int] = {}
        for (tenant, _, _), (_, devices) in self._extra.items():
            hours[tenant] = hours.get(tenant, 0) + sum(devices.values())
        return [
            f"{ns / HOUR_NS:,.1f} GPU-hours of steps of {tenant} are covered by no allocation, and nothing is billed"
            " for them: add the allocation, or look who runs there."
            for tenant, ns in hours.items()
        ]

    def _key(self, index: int) -> tuple[str, str | None, str]:
        held = self._ledger.held[index]
        return held.tenant, held.allocation_id, held.host

    def _uncovered(self, usage: Usage, host: str, row: Used) -> int:
        index, devices = self._extra.setdefault(
            (usage.tenant, host, row.gpu_type), (self.recorded + len(self._extra), {})
        )
        ns = round((row.device_s + row.unknown_s) * float(row.sm_share) * 1e9)
        devices[usage.device] = devices.get(usage.device, 0) + ns
        return index


def _row(usage: Usage, host: str, peaks: Mapping[str, float], about: _About, lost: Lost | None) -> Used | None:
    sums, gpu_type = usage.sums, usage.gpu_type
    if not sums.device_s or gpu_type is None:
        return None
    share = _sm_share(usage)
    if share is None:
        return None
    unknown = min(1.0, (sums.unknown_steps or 0.0) / sums.timed_steps) if sums.timed_steps else 0.0
    known_s = 0.0 if sums.model_flops is None else sums.device_s * (1 - unknown)
    own = _own_peak(sums, known_s)
    # A run in fp8 may pass the bf16 reference; its hours are split at the faster peak.
    peak = max(peaks.get(gpu_type, 0.0), (own or 0.0) / float(share))
    # An expectation is over the row's own peak.
    over = own / float(share) / peak if own and peak else None
    places = about.of(usage)
    return Used(
        held=-1,
        tenant=usage.tenant,
        workload=usage.workload,
        phase=usage.phase,
        device=usage.device,
        host=host,
        gpu_type=gpu_type,
        sm_share=share,
        device_s=known_s,
        unknown_s=sums.device_s - known_s,
        model_flops=sums.model_flops or 0.0,
        peak_flops_per_s=peak,
        expected_mfu=_times(sums.expected_mfu, over),
        expected_low=_times(sums.expected_low_mfu, over),
        expected_high=_times(sums.expected_high_mfu, over),
        data_s=_seconds(sums.data_s, sums.data_known_s, known_s),
        comm_s=_seconds(sums.comm_s, sums.comm_known_s, known_s),
        skew_s=_seconds(sums.skew_s, sums.skew_known_s, known_s),
        host_s=_seconds(sums.host_s, sums.host_known_s, known_s),
        tokens=sums.tokens,
        lost_s=None if lost is None else min(1.0, lost.seconds / sums.device_s) * known_s,
        tokens_good=_good(sums.tokens, lost),
        intent=usage.intent,
        losses=about.losses(places),
        claims=places,
    )


def _sm_share(usage: Usage) -> Fraction | None:
    """The device's part of its GPU's SMs; None for a slice of a profile that nobody knows."""
    if usage.mig_profile is None:
        return Fraction(1)
    try:
        return mig.profile(usage.gpu_type or "", usage.mig_profile).sm_share
    except ConfigurationError:
        return None


def _weighed(row: Used, weight: float) -> dict[str, Any]:
    if weight == 1.0:
        return {}
    additive = (
        "device_s", "unknown_s", "model_flops", "data_s", "comm_s", "skew_s", "host_s", "lost_s", "tokens",
        "tokens_good",
    )  # fmt: skip
    parts = {name: getattr(row, name) for name in additive}
    return {name: None if value is None else value * weight for name, value in parts.items()} | {"weight": weight}


def _used(
    ledger: Ledger,
    placed: Sequence[tuple[Used, int, float]],
    recorded: int,
    beyond: Container[tuple[str, str]],
) -> tuple[Used, ...]:
    """The rows under their allocations, and what stands behind them.

    Those that contradict nothing known are `consistent`, or `witnessed` where they are: allocated, within the time that
    is held, at that time (not `beyond`), of no more time than passed on their device, and of an MFU that is possible at
    a peak that it can have.
    """
    step_ns: dict[int, float] = {}
    device_s: dict[str, float] = {}
    for row, index, weight in placed:
        seconds = (row.device_s + row.unknown_s) * weight
        step_ns[index] = step_ns.get(index, 0.0) + seconds * float(row.sm_share) * 1e9
        device_s[row.device] = device_s.get(row.device, 0.0) + seconds
    wall_s = (ledger.until_unix_ns - ledger.since_unix_ns) / 1e9
    rows = []
    for row, index, weight in placed:
        fits = step_ns[index] <= ledger.held[index].gpu_ns * _SLACK and device_s[row.device] <= wall_s * _SLACK
        fits = fits and (row.tenant, row.device) not in beyond
        can = row.device_s * row.peak_flops_per_s * float(row.sm_share)
        fastest = _fastest(row.gpu_type)
        possible = 0 < row.model_flops <= can * _MOST_MFU and (
            fastest is None or row.peak_flops_per_s <= fastest * _MOST_OF_PAPER
        )
        trust = row.trust
        if trust != "contradicted":
            trust = "claimed" if index >= recorded or not fits or not possible else _stands(trust)
        rows.append(replace(row, held=index, trust=trust, **_weighed(row, weight)))
    return tuple(rows)


def _stands(said: Trust) -> Trust:
    return "witnessed" if said == "witnessed" else "consistent"


def _beyond(seconds: Mapping[tuple[str, str], float]) -> list[str]:
    """A sentence for each tenant whose steps lie outside of the time that it held their hosts."""
    hours: dict[str, float] = {}
    for (tenant, _), each in seconds.items():
        hours[tenant] = hours.get(tenant, 0.0) + each / 3600
    return [
        f"{each:,.1f} GPU-hours of steps of {tenant} lie outside of the time that it held their hosts: no advice on"
        " prices is built on what these GPUs did. Correct the allocations' times, or look who runs there."
        for tenant, each in hours.items()
    ]


def _gainsaid(rows: Iterable[Used], contested: Container[tuple[str, str]]) -> list[str]:
    """A sentence on steps whose figures cannot be right together; of those that are contested there is another."""
    hours: dict[str, float] = {}
    for row in rows:
        if row.trust == "contradicted" and (row.tenant, row.device) not in contested:
            seconds = (row.device_s + row.unknown_s) * float(row.sm_share)
            hours[row.tenant] = hours.get(row.tenant, 0.0) + seconds / 3600
    return [
        f"{each:,.1f} GPU-hours of steps of {tenant} cannot be as they are told (see its findings of `accounting`): no"
        " advice on prices is built on them."
        for tenant, each in hours.items()
    ]


_CONTESTS: Final = {
    "held_by_another": "are told of GPUs that {others} held then by your records; rows that are mostly so are in no"
    " figure of money: see who runs there, or correct `allocations`.",
    "not_held": "are told of GPUs that it did not hold then by your records: see who runs there, or correct"
    " `allocations`.",
    "claimed_twice": "are told of GPUs of which {others} told at the same time: one of them is wrong; name the UUIDs in"
    " `allocations` to know which.",
}


def _contests(contests: Iterable[Contested]) -> list[str]:
    """A sentence for each tenant and reason."""
    hours: dict[tuple[str, str], float] = {}
    others: dict[tuple[str, str], set[str]] = {}
    for each in contests:
        key = each.tenant, each.why
        hours[key] = hours.get(key, 0.0) + each.hours
        others.setdefault(key, set()).update(each.others)
    return [
        f"{each:,.1f} hours of steps of {tenant} {_CONTESTS[why].format(others=_named(others[tenant, why]))}"
        for (tenant, why), each in hours.items()
    ]


def _named(tenants: Iterable[str]) -> str:
    names = sorted(tenants)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _key(usage: Usage) -> tuple[object, ...]:
    return usage.tenant, usage.workload, usage.gpu_type, usage.world_size, usage.phase


def _configuration(usage: Usage) -> tuple[object, ...]:
    return usage.family, usage.intent, usage.fingerprint


def _stray(strays: Mapping[str, int]) -> list[str]:
    if not strays:
        return []
    names = ", ".join(sorted(strays)[:3]) + (", …" if len(strays) > 3 else "")
    return [
        f"Steps on {len(strays)} hosts that the inventory does not own are in no figure of money ({names}): add them to"
        " `nodes`, or correct the names."
    ]


def _on_paper(gpu_type: str) -> float | None:
    try:
        rates = theoretical(catalogue.find(gpu_type)[0].silicon).headline
    except ConfigurationError:
        return None
    return next((rates[dtype].flops_per_s for dtype in _REFERENCE if dtype in rates), None)


@cache
def _fastest(gpu_type: str) -> float | None:
    """The highest dense rate of any dtype that the type has on paper, FLOP/s."""
    try:
        theory = theoretical(catalogue.find(gpu_type)[0].silicon)
    except ConfigurationError:
        return None
    rates = [rate.flops_per_s for table in (theory.reference, theory.at_max_clock) for rate in table.values()]
    return max(rates, default=None)


def _own_peak(sums: Sums, known_s: float | None = None) -> float | None:
    """The peak that a row's steps were measured against, FLOP/s."""
    seconds = sums.device_s if known_s is None else known_s
    return sums.available_flops / seconds if sums.available_flops and seconds else None


def _seconds(seconds: float | None, of_s: float | None, known_s: float) -> float | None:
    """A component over the whole of the row's time, by its share of the time in which it is known."""
    return seconds / of_s * known_s if seconds is not None and of_s else None


def _good(tokens: float | None, lost: Lost | None) -> float | None:
    """Tokens but for those of steps that were done again."""
    if tokens is None or lost is None or lost.tokens is None:
        return tokens
    return max(0.0, tokens - lost.tokens)


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor


def _part(amount: Fraction | None, ns: int, of_ns: int) -> Fraction | None:
    return None if amount is None else amount * ns / of_ns if of_ns else Fraction(0)
