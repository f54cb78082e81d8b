"""Work that is slower than it was because its configuration changed: within a run, or from one run to the next.

Within a run it is the detector's finding (`mfu_sdk.drift`), with what changed near the onset; clocks, stragglers, input
and load were looked at when it was found. Between runs a run is held against earlier ones of the same work under
another fingerprint, by time per token and by FLOP/s, both of a device. FLOP/s over the dense bf16 reference is the
figure that no change of dtype hides: a run that fell back to fp32 has a smaller denominator, and so a fine MFU.
"""

from collections.abc import Mapping
from statistics import median
from typing import Final

from mfu_sdk.provider.causes.clock import CLOCK_RATIO, clock_ratio
from mfu_sdk.provider.causes.evidence import Drift, Earlier, Evidence
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS, Verdict, confidence
from mfu_sdk.provider.causes.waiting import DATA_SHARE, SKEW_SHARE

LOAD_RATIO: Final = 1.25
"""By which factor the batch of requests must change to be another load."""
OTHER_DTYPE: Final = 1.5
"""By which factor the denominators of two dtypes differ at least."""
_TRAINING: Final = ("train", "eval")


def configuration_drift(e: Evidence) -> Verdict | None:
    """The detector's alarm with a change near its onset, or a run that falls short of those before it."""
    found = [each for each in (_within(e), _between(e)) if each is not None]
    return max(found, key=lambda each: (each.confidence, each.loss), default=None)


def _within(e: Evidence) -> Verdict | None:
    # Its own process has that cause from what changed, and tells a provider of the cause alone (`export.allowed`).
    found = [each for each in e.drifts if each.cause == "configuration_drift" and _loss(each) > 0]
    loss = sum(_loss(each) for each in found)
    if loss < MATERIAL_LOSS:
        return None
    worst = max(found, key=_loss)
    changed = "; ".join(worst.diff[:5])
    what = (
        f"this changed then: {changed}"
        if changed
        else (
            "something of its configuration changed then, which its owner is told by its own collector "
            "(mfu.drift.fingerprint.diff)"
        )
    )
    return Verdict(
        "configuration_drift",
        min(loss, 1.0),
        confidence(*(each is not None for each in (worst.cause, changed or None))),
        {
            "change_of_rate": worst.change,
            "onset_step": float(worst.onset_step),
            "time_share": worst.time_share,
            **({"changed": changed} if changed else {}),
        },
        f"Since step {worst.onset_step:,} the run is {-worst.change:.0%} slower, and {what}. "
        "Undo it, or take it as the new normal by starting the run anew.",
    )


def _loss(drift: Drift) -> float:
    return max(0.0, -drift.change) * drift.time_share


def _between(e: Evidence) -> Verdict | None:
    if e.fingerprint is None or e.flops_per_s is None or not e.earlier:
        return None
    if not _ruled_out(e):
        return None
    comparable = [each for each in e.earlier if e.phase in _TRAINING or _same_load(e, each)]
    others: dict[str, list[Earlier]] = {}
    for each in comparable:
        others.setdefault(each.fingerprint, []).append(each)
    own = others.pop(e.fingerprint, [])
    falls = {name: loss for name, runs in others.items() if (loss := _shortfall(e, runs)) is not None}
    if not falls:
        return None
    name = max(falls, key=lambda key: falls[key])
    loss, before = falls[name], others[name]
    if loss < MATERIAL_LOSS:
        return None
    if own and median(run.flops_per_s for run in own) >= (1 - MATERIAL_LOSS) * _flops_per_s(before):
        # With this very configuration it was as fast.
        return None
    shown = _shown(e, before, name)
    return Verdict(
        "configuration_drift",
        loss,
        # Two earlier runs agree by more than chance; rivals that nothing here tells of stay possible.
        confidence(
            len(before) > 1, e.tokens_per_s is not None, *(each is not None for each in (e.data, e.skew, e.clock))
        ),
        shown,
        f"Earlier runs of this workload ({before[-1].run_id or name}) did the same work in {1 - loss:.0%} of the time "
        f"under another configuration{_dtype(shown)}: compare their versions, dtypes, batch and switches, and undo "
        "what was not meant.",
    )


def _ruled_out(e: Evidence) -> bool:
    """Whether neither clocks, late ranks nor input can be what it is."""
    ratio = clock_ratio(e) if e.cohort_clock is not None else e.clock
    for name, value in (("data", e.data), ("skew", e.skew), ("clock", ratio)):
        if value is None:
            if name not in e.untold:
                return False
        elif name == "clock":
            if value < CLOCK_RATIO:
                return False
        elif value > (DATA_SHARE if name == "data" else SKEW_SHARE):
            return False
    return True


def _same_load(e: Evidence, earlier: Earlier) -> bool:
    if not e.batch or not earlier.batch:
        return False
    return max(e.batch / earlier.batch, earlier.batch / e.batch) < LOAD_RATIO


def _flops_per_s(runs: list[Earlier]) -> float:
    return median(run.flops_per_s for run in runs)


def _shortfall(e: Evidence, runs: list[Earlier]) -> float | None:
    """By how much it falls short of the median of `runs`, by tokens and by FLOP/s: the smaller of both."""
    assert e.flops_per_s is not None
    by_flops = 1 - e.flops_per_s / _flops_per_s(runs)
    tokens = [run.tokens_per_s for run in runs if run.tokens_per_s]
    if not tokens:
        # Nobody ever told of tokens here.
        return by_flops
    if e.tokens_per_s is None:
        return None
    return min(by_flops, 1 - e.tokens_per_s / median(tokens))


def _shown(e: Evidence, before: list[Earlier], name: str) -> Mapping[str, float | str]:
    shown: dict[str, float | str] = {
        "fingerprint": e.fingerprint or "",
        "fingerprint_before": name,
        "runs_before": float(len(before)),
        "flop_rate_flops_per_s": e.flops_per_s or 0.0,
        "flop_rate_before_flops_per_s": _flops_per_s(before),
    }
    tokens = [run.tokens_per_s for run in before if run.tokens_per_s]
    if tokens and e.tokens_per_s:
        shown |= {"time_per_token_s": 1 / e.tokens_per_s, "time_per_token_before_s": 1 / median(tokens)}
    if e.reference_flops_per_s and e.flops_per_s:
        shown |= {
            "mfu_over_bf16_reference": e.flops_per_s / e.reference_flops_per_s,
            "mfu_over_bf16_reference_before": _flops_per_s(before) / e.reference_flops_per_s,
        }
    peaks = [run.peak_flops_per_s for run in before if run.peak_flops_per_s]
    if e.peak_flops_per_s and peaks:
        shown |= {"peak_flops_per_s": e.peak_flops_per_s, "peak_before_flops_per_s": median(peaks)}
    return shown


def _dtype(shown: Mapping[str, float | str]) -> str:
    now, before = shown.get("peak_flops_per_s"), shown.get("peak_before_flops_per_s")
    if not isinstance(now, float) or not isinstance(before, float) or max(now / before, before / now) < OTHER_DTYPE:
        return ""
    return f", with a peak of {before / 1e12:.0f} TFLOP/s instead of {now / 1e12:.0f} TFLOP/s, which is another dtype's"
