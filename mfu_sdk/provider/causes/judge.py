"""From what is known of workloads to findings: every rule on every workload, and losses that fit into the whole.

Rules look at a workload one by one and build only on signals that are known, so that a lost signal can take a cause
away and never adds one. What several causes cost is laid end to end: waits were measured and do not overlap; a slower
clock has its share of the rest, then the path and scale; drift and batch take only what is left.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from mfu_sdk.provider.causes.accounting import accounting
from mfu_sdk.provider.causes.clock import thermal_or_power
from mfu_sdk.provider.causes.drifted import configuration_drift
from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.finding import UNKNOWN_SHORTFALL, Finding, Verdict
from mfu_sdk.provider.causes.idle import idle_allocation
from mfu_sdk.provider.causes.links import poor_topology, scaling_inefficiency
from mfu_sdk.provider.causes.partition import mig_fragmentation
from mfu_sdk.provider.causes.under_batching import under_batched_inference
from mfu_sdk.provider.causes.waiting import input_bound, straggler

Rule = Callable[[Evidence], Verdict | None]
OF_TIME: Final[tuple[Rule, ...]] = (
    input_bound, straggler, poor_topology, scaling_inefficiency, thermal_or_power, configuration_drift,
    under_batched_inference,
)  # fmt: skip
"""Rules whose losses are shares of the step time, in the order in which they take their part of it."""
OF_OTHER: Final[tuple[Rule, ...]] = (mig_fragmentation, idle_allocation, accounting)
"""Rules whose losses are shares of something else: a GPU, allocated hours, claimed FLOPs."""
OF_A_PART: Final[Mapping[str, Rule]] = {
    "data": input_bound, "skew": straggler, "comm": poor_topology, "clock": thermal_or_power,
}  # fmt: skip
"""What may begin at noon, and so is looked for in the hours in which a signal is worse. Scale is a job's own from its
first step on, a changed configuration is another unit, and a service's batch follows its day."""
_APART: Final = frozenset({"mig_fragmentation", "idle_allocation"})


def judge(evidence: Iterable[Evidence]) -> tuple[Finding, ...]:
    """All findings, the largest losses first; of equal ones by name.

    Of one cause that several configurations or phases of a workload have, the one that cost the most time.
    """
    found: dict[str, tuple[float, Finding]] = {}
    for e in evidence:
        for each in findings(e):
            cost = each.loss_share * (e.time_s or 0.0)
            if each.id not in found or cost > found[each.id][0]:
                found[each.id] = cost, each
    ordered = (each for _, each in found.values())
    return tuple(sorted(ordered, key=lambda each: (-each.loss_share, each.tenant, each.workload or "", each.cause)))


def findings(e: Evidence) -> list[Finding]:
    """What is wrong with one workload."""
    found: list[Finding] = []
    left = 1.0
    # What is so all day explains a shortfall, and what is so in a part of it that part's share.
    explained, of_parts = False, 0.0
    for rule in OF_TIME:
        verdict = rule(e)
        if verdict is not None:
            explained = True
        elif not e.parts or (verdict := _of_a_part(e, rule)) is None:
            continue
        else:
            of_parts += verdict.loss
        loss = min(verdict.loss, left)
        left -= loss
        found.append(_finding(e, verdict, loss))
    others = [verdict for rule in OF_OTHER if (verdict := rule(e)) is not None]
    found += [_finding(e, verdict, min(verdict.loss, 1.0)) for verdict in others]
    explained = explained or any(verdict.cause not in _APART for verdict in others)
    if not explained and (verdict := unknown(e, of_parts)) is not None:
        found.append(_finding(e, verdict, verdict.loss))
    return found


def _of_a_part(e: Evidence, rule: Rule) -> Verdict | None:
    """What a rule says of the hours that stand out: its loss is what they lost of the whole time."""
    for part in e.parts:
        if part.worse is None or OF_A_PART.get(part.worse) is not rule or not part.time_s or not e.time_s:
            continue
        verdict = rule(part)
        if verdict is None:
            continue
        since, until = _clock_time(part.since_unix_s), _clock_time(part.until_unix_s)
        shown = {**verdict.shown, "from": since, "until": until, "loss_share_within": verdict.loss}
        loss = verdict.loss * min(1.0, part.time_s / e.time_s)
        return replace(verdict, loss=loss, shown=shown, remedy=f"From {since} to {until}: {verdict.remedy}")
    return None


def _clock_time(unix_s: int | None) -> str:
    return f"{datetime.fromtimestamp(unix_s or 0, UTC):%Y-%m-%dT%H:%MZ}"


def unknown(e: Evidence, explained: float = 0.0) -> Verdict | None:
    """The expectation is missed by 10 % or more beyond what is explained. What was not told is said: it may be that."""
    if e.mfu is None or not e.expected_mfu:
        return None
    shortfall = 1 - e.mfu / e.expected_mfu - explained
    if shortfall < UNKNOWN_SHORTFALL:
        return None
    missing = [name for name, value in _told(e) if value is None]
    shown: dict[str, float | str] = {"mfu": e.mfu, "expected_mfu": e.expected_mfu}
    if missing:
        shown["not_told"] = ", ".join(missing)
    return Verdict(
        "unknown",
        shortfall,
        # How sure it is that none of the named causes is it, by how many of them could have been seen.
        0.95 * (1 - len(missing) / len(_told(e))),
        shown,
        "Nothing that is known explains it: take a profile of some steps (`run.summary().waterfall` says where their "
        f"time went){', and let the run tell ' + ', '.join(missing) if missing else ''}.",
    )


def _told(e: Evidence) -> tuple[tuple[str, object], ...]:
    always: tuple[tuple[str, object], ...] = (("data waits", e.data), ("clocks", e.clock))
    if e.phase in ("decode", "inference"):
        return (*always, ("the feasible batch", e.feasible), ("the queue", e.queue))
    return (*always, ("exposed communication", e.comm), ("rank skew", e.skew), ("earlier runs", e.earlier or None))


def _finding(e: Evidence, verdict: Verdict, loss: float) -> Finding:
    return Finding(
        tenant=e.tenant,
        workload=e.workload,
        run_id=e.run_ids[-1] if e.run_ids else None,
        gpu_type=e.gpu_type,
        world_size=e.world_size,
        phase=e.phase,
        day=e.day,
        cause=verdict.cause,
        loss_share=loss,
        confidence=verdict.confidence,
        evidence=verdict.shown,
        remedy=verdict.remedy,
    )
