"""Inference at a small part of the batch that would fit, with room in the cache and nobody waiting.

The counterfactual is the batch that fits and that the promised latency lets through. By roofline a call at batch b
takes t(b), tokens a second are b / t(b), and these go with the expected MFU, so that t(f) = t(b) · (f/b) · MFU(b) /
MFU(f). Between the two batches t is taken as a line, on which the promise cuts off the largest batch.
"""

from typing import Final

from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS, Verdict, confidence

FILL_RATIO: Final = 0.35
KV_FREE: Final = 0.25
QUEUE: Final = 0.5
"""Fewer requests than this wait on average where none need wait."""
PREFILL_SHARE: Final = 0.5
"""A service whose prompts take more of its time than its answers is bound by prompts."""
RIDGE_SHARE: Final = 0.5
"""Below this share of the ridge an intensity is far from it: twice the batch still is memory's time."""


def under_batched_inference(e: Evidence) -> Verdict | None:
    """Running below 0.35 of what would fit, bound by memory, with the cache a quarter free and the queue empty."""
    if e.phase not in ("decode", "inference") or not e.batch or not e.feasible or e.batch >= FILL_RATIO * e.feasible:
        return None
    if e.queue is None or e.queue > QUEUE:
        return None
    # A server with a cache puts all that runs into one call, whether or not it tells prompts from answers. A model
    # without one may be called one by one because its callers wait: only a promise with room tells.
    cached = e.kv_free is not None
    if e.phase == "decode" and not cached:
        return None
    if not cached and e.latency_target_s is None:
        return None
    if e.kv_free is not None and e.kv_free <= KV_FREE:
        return None
    if e.intensity is None or not e.ridge:
        return None
    if cached and e.intensity >= RIDGE_SHARE * e.ridge:
        return None
    if e.phase == "decode" and _is_prefill(e):
        return None
    if not e.expected_mfu or not e.feasible_mfu:
        return None
    batch, loss = _counterfactual(e, e.batch, e.feasible, e.expected_mfu, e.feasible_mfu)
    if e.batch >= FILL_RATIO * batch or loss < MATERIAL_LOSS:
        return None
    shown: dict[str, float | str] = {
        "batch_running": e.batch,
        "batch_feasible": batch,
        "fill_ratio": e.batch / batch,
        "queue_waiting": e.queue,
        "intensity_flop_per_byte": e.intensity,
        "ridge_flop_per_byte": e.ridge,
        "expected_mfu": e.expected_mfu,
        "expected_mfu_at_feasible_batch": e.feasible_mfu,
    }
    if e.kv_free is not None:
        shown["kv_cache_free_share"] = e.kv_free
    if e.latency_target_s is not None and e.answer_s is not None:
        shown |= {"latency_target_s": e.latency_target_s, "latency_s": e.answer_s}
    return Verdict(
        "under_batched_inference",
        loss,
        confidence(e.answer_s is not None, e.kv_free is not None),
        shown,
        f"Calls hold {e.batch:.3g} of the {batch:.3g} sequences that fit, and nobody waits: "
        + (
            f"raise max_num_seqs from {e.batch:.3g} towards {batch:.0f}, or serve the same requests on fewer replicas."
            if cached
            else f"batch requests dynamically towards {batch:.0f} within that latency, or serve on fewer replicas."
        ),
    )


def _is_prefill(e: Evidence) -> bool:
    """Whether prompts take most of its time: what they leave of the device bounds the batch of the answers."""
    return e.prefill is None or e.prefill > PREFILL_SHARE


def _counterfactual(e: Evidence, batch: float, feasible: float, now: float, then: float) -> tuple[float, float]:
    """The batch that fits and keeps the promise, and 1 − tokens/s ÷ tokens/s at that batch."""
    if e.latency_target_s is None:
        return feasible, 1 - now / then
    if not e.answer_s:
        return batch, 0.0
    # Times are in units of what a call takes now.
    full = feasible / batch * now / then
    allowed = e.latency_target_s / e.answer_s
    if allowed >= full:
        return feasible, 1 - now / then
    if allowed <= 1 or full <= 1:
        return batch, 0.0
    most = batch + (feasible - batch) * (allowed - 1) / (full - 1)
    return most, 1 - allowed * batch / most
