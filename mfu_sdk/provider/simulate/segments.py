"""A training workload's time, cut where its configuration, its faults or its process change."""

from dataclasses import dataclass, replace
from itertools import pairwise

from mfu_sdk.provider.simulate.faults import Injected, applied, counterfactual
from mfu_sdk.provider.simulate.training import Job
from mfu_sdk.provider.simulate.workload import Training, Workload

_STARTING_S = 120.0
"""How long a new run takes to begin."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of virtual time under one configuration; `without` is the job less each fault that holds.

    `run` and `attempt` number the process; `redo_s` is the work that it does again.
    """

    since_s: float
    until_s: float
    job: Job
    without: tuple[tuple[Injected, Job], ...]
    run: int
    attempt: int
    redo_s: float
    last: bool


def segments(workload: Workload) -> list[Segment]:
    """The stretches of a workload, in order."""
    what = workload.what
    assert isinstance(what, Training)
    edges = {workload.start_s, workload.end_s}
    edges |= {at for fault in workload.faults for at in (fault.onset_s, fault.end_s)}
    edges |= {at for at, _ in what.versions} | {restart.at_s for restart in what.restarts}
    edges = {edge for edge in edges if workload.start_s <= edge <= workload.end_s}
    restarts = {restart.at_s: restart for restart in what.restarts}
    renewed = {at for at, _ in what.versions}
    renewed |= {at for fault in workload.faults if fault.new_run for at in (fault.onset_s, fault.end_s)}
    found: list[Segment] = []
    run = attempt = 0
    ordered = sorted(edges)
    for since_s, until_s in pairwise(ordered):
        job = next((each for at, each in reversed(what.versions) if at <= since_s), what.job)
        holding = [fault for fault in workload.faults if fault.holds(since_s) and fault.kind != "idle_allocation"]
        begins = since_s
        redo_s = 0.0
        if since_s in renewed and found:
            run, attempt, begins = run + 1, 0, since_s + _STARTING_S
        elif since_s in restarts and found:
            attempt, begins, redo_s = attempt + 1, since_s + restarts[since_s].down_s, restarts[since_s].lost_s
        without = []
        for fault in holding:
            rest = job
            for other in holding:
                rest = rest if other is fault else applied(rest, other)
            without.append((fault, counterfactual(rest, fault)))
        for fault in holding:
            job = applied(job, fault)
        if begins < until_s:
            found.append(Segment(begins, until_s, job, tuple(without), run, attempt, redo_s, last=False))
    # A process that crashes sends no run span; one that is ended does.
    return [
        replace(each, last=following is None or following.run != each.run)
        for each, following in zip(found, [*found[1:], None], strict=True)
    ]
