"""A GPU cut into slices that nothing that waits fits on.

The counterfactual is a layout on which what waits can be placed: what no slice covers, times the probability that a
queued profile cannot be placed as things are, is lost of the GPU. Free slices that something in the queue fits on are
unsold, not stranded; a layout without anything stranded is the right one however its slices are used.
"""

from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.finding import MATERIAL_LOSS, Verdict, confidence


def mig_fragmentation(e: Evidence) -> Verdict | None:
    """Stranded share × P(queued profile cannot be placed) above 5 % of the GPU."""
    if e.stranded is None or e.unplaceable is None:
        return None
    loss = e.stranded * e.unplaceable
    if loss <= MATERIAL_LOSS:
        return None
    shown: dict[str, float | str] = {"stranded_gpu_share": e.stranded, "unplaceable_probability": e.unplaceable}
    if e.mig_profile is not None:
        shown["profile"] = e.mig_profile
    if e.wanted is not None:
        shown["queued_profile"] = e.wanted
    return Verdict(
        "mig_fragmentation",
        loss,
        confidence(e.mig_profile is not None, e.wanted is not None),
        shown,
        f"{e.stranded:.0%} of its GPU lies between slices: move {_slice(e)} to another GPU or start, so that "
        f"{e.wanted or 'what waits'} can be placed.",
    )


def _slice(e: Evidence) -> str:
    return f"the slice {e.mig_profile}" if e.mig_profile is not None else "a slice"
