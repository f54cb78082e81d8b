"""Devices that are allocated and heard, and have nothing to do.

The counterfactual is the allocation that the same steps need. Hours in which no SDK was heard are unobserved, never
idle, and are no part of the share.

A queue says that there is demand. Where all devices of a workload stand still for most of the time it may be what they
are kept for, and nothing is said. Where others of the same workload work meanwhile, requests that wait there are none
of these devices' work: they have as little to do, and the remedy is another one.
"""

from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS, Verdict, confidence
from mfu_sdk.provider.causes.under_batching import QUEUE


def idle_allocation(e: Evidence) -> Verdict | None:
    """Devices without steps for half of their time or more, and nobody waiting, or nobody whom they would serve."""
    if e.idle is None or e.idle < MATERIAL_LOSS:
        return None
    serves = e.phase not in ("train", "eval", "checkpoint")
    waits = e.queue is not None and e.queue > QUEUE
    if serves and not e.working and (waits or (e.queue is None and "queue" not in e.untold)):
        return None
    shown: dict[str, float | str] = {"idle_share_of_allocated_hours": e.idle}
    if e.queue is not None:
        shown["queue_waiting"] = e.queue
    if e.replicas is not None:
        shown["replicas"] = float(e.replicas)
    if e.working is not None:
        shown["replicas_at_work"] = float(e.working)
    if not serves:
        remedy = "see whether the process hangs, and end it when its work is done"
    elif waits:
        remedy = (
            f"requests wait at the {e.working} that work and reach none of the others: see whether the balancer knows "
            "them and finds them well, or give them back"
        )
    elif e.replicas is not None and e.replicas > 1:
        remedy = f"serve on {max(1, round(e.replicas * (1 - e.idle)))} replicas instead of {e.replicas}"
    else:
        remedy = "serve it from a MIG slice, or beside another model on one GPU"
    return Verdict(
        "idle_allocation",
        e.idle,
        confidence(e.queue is not None and not waits, e.replicas is not None),
        shown,
        f"{e.idle:.0%} of the allocated time had no steps{_waited(e)}: {remedy}.",
    )


def _waited(e: Evidence) -> str:
    """What is known of those who would wait."""
    if e.queue is None:
        return ", and nobody tells who waits"
    return " and nobody waited" if e.queue <= QUEUE else ""
