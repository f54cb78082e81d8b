"""Devices that are allocated and heard, and have nothing to do.

The counterfactual is the allocation that the same steps need. Hours in which no SDK was heard are unobserved, never
idle, and are no part of the share.
"""

from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS, Verdict, confidence
from mfu_sdk.provider.causes.under_batching import QUEUE


def idle_allocation(e: Evidence) -> Verdict | None:
    """Devices without steps for half of their time or more, and nobody waiting."""
    if e.idle is None or e.idle < MATERIAL_LOSS:
        return None
    serves = e.phase not in ("train", "eval", "checkpoint")
    if serves and (e.queue > QUEUE if e.queue is not None else "queue" not in e.untold):
        return None
    shown: dict[str, float | str] = {"idle_share_of_allocated_hours": e.idle}
    if e.queue is not None:
        shown["queue_waiting"] = e.queue
    if e.replicas is not None:
        shown["replicas"] = float(e.replicas)
    if not serves:
        remedy = "see whether the process hangs, and end it when its work is done"
    elif e.replicas is not None and e.replicas > 1:
        remedy = f"serve on {max(1, round(e.replicas * (1 - e.idle)))} replicas instead of {e.replicas}"
    else:
        remedy = "serve it from a MIG slice, or beside another model on one GPU"
    return Verdict(
        "idle_allocation",
        e.idle,
        confidence(e.queue is not None, e.replicas is not None),
        shown,
        f"{e.idle:.0%} of the allocated time had no steps and nobody waited: {remedy}.",
    )
