"""Time in which devices wait for data, or for ranks that come late. Both are measured: the loss is what was waited."""

from typing import Final

from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS, Verdict, confidence

DATA_SHARE: Final = 0.15
SKEW_SHARE: Final = 0.06


def input_bound(e: Evidence) -> Verdict | None:
    """More than 15 % of the time waits for data, or 5 % more than in other hours of the same configuration.

    What a tuned loader leaves differs between workloads, and 15 % are beyond all of it; of one workload it is known.
    """
    if e.data is None:
        return None
    usual = None if e.rest is None else e.rest.data
    loss = e.data if e.data > DATA_SHARE else e.data - usual if usual is not None else 0.0
    if loss < MATERIAL_LOSS:
        return None
    shown: dict[str, float | str] = {"data_share": e.data}
    if usual is not None:
        shown["data_share_in_other_hours"] = usual
    return Verdict(
        "input_bound",
        loss,
        # A loader that is late for one rank is seen as skew by the others.
        confidence(e.skew is not None and e.skew <= SKEW_SHARE),
        shown,
        f"Steps wait for data {e.data:.0%} of the time: raise the loader's num_workers and prefetch_factor, or move "
        "decoding and tokenization ahead of the run.",
    )


def straggler(e: Evidence) -> Verdict | None:
    """More than 6 % of the time waits for ranks that come late, or steps are 5 % longer by them than in other hours."""
    if e.skew is None:
        return None
    usual = None if e.rest is None else e.rest.skew
    loss = e.skew if e.skew > SKEW_SHARE else _lateness(e.skew - usual, e.world_size) if usual is not None else 0.0
    if loss < MATERIAL_LOSS:
        return None
    shown: dict[str, float | str] = {"skew_share": e.skew}
    if usual is not None:
        shown["skew_share_in_other_hours"] = usual
    who = "one rank"
    if e.late_rank is not None:
        shown["late_rank"] = float(e.late_rank)
        who = f"rank {e.late_rank}"
    if e.late_host is not None:
        shown["late_host"] = e.late_host
        who += f" on {e.late_host}"
    return Verdict(
        "straggler",
        loss,
        confidence(e.comm is not None, e.late_rank is not None),
        shown,
        f"All ranks wait for {who} {e.skew:.0%} of the time: balance its share of the batch, look for other processes "
        "on its node, and restart without that node if it stays late.",
    )


def _lateness(skew: float, ranks: int | None) -> float:
    """By how much of a step the late ranks are late, at least: the mean over ranks holds theirs, who do not wait."""
    return skew * ranks / (ranks - 1) if ranks is not None and ranks > 1 else skew
