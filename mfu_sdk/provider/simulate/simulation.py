"""A plan as it unfolds: every workload is advanced by a quarter of an hour at a time, so that memory stays bounded."""

from collections.abc import Callable
from typing import Any

from mfu_sdk.provider.simulate.ledger import Account
from mfu_sdk.provider.simulate.outgoing import Outgoing
from mfu_sdk.provider.simulate.serving_run import ServingRun
from mfu_sdk.provider.simulate.training_run import TrainingRun
from mfu_sdk.provider.simulate.truth import truth
from mfu_sdk.provider.simulate.windows import AS_SENT, Form
from mfu_sdk.provider.simulate.workload import Plan, Training

CHUNK_S = 900.0
ALIGNED_NS = 300_000_000_000
"""A fleet's time begins and ends on whole five minutes."""


def simulate(
    plan: Plan,
    until_ns: int,
    out: Outgoing,
    *,
    form: Form = AS_SENT,
    progress: Callable[[str, float], None] = lambda _label, _share: None,
) -> dict[str, Any]:
    """Send what happens in the plan, which ends at `until_ns` at the latest, and return the truth.

    `form` is that of its windows: the SDK's own, or one with the same sums in fewer bytes.
    """
    zero_ns = begins_ns(plan, until_ns)
    accounts = {(each.tenant, each.name): Account() for each in plan.workloads}
    runs = [
        (TrainingRun if isinstance(each.what, Training) else ServingRun)(
            each, plan.seed, zero_ns, form, accounts[each.tenant, each.name]
        )
        for each in plan.workloads
    ]
    at_s = 0.0
    while at_s < plan.duration_s:
        at_s = min(at_s + CHUNK_S, plan.duration_s)
        for number, run in enumerate(runs):
            run.advance(at_s, out)
            if number % 16 == 0:
                share = (at_s - CHUNK_S * (1 - number / len(runs))) / plan.duration_s
                progress(f"hour {at_s / 3600:.1f}", max(0.0, share))
    return truth(plan, accounts, zero_ns)


def begins_ns(plan: Plan, until_ns: int) -> int:
    """Virtual time 0 in unix ns."""
    return until_ns // ALIGNED_NS * ALIGNED_NS - round(plan.duration_s * 1e9)
