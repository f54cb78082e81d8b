"""Shortfalls without a cause stand behind those with one, in a sentence."""

from dataclasses import replace

from mfu_sdk.provider.report.model import Cause
from mfu_sdk.provider.report.unexplained import parted

NAMED = Cause("acme", "serve", "r", "under_batched_inference", 0.729, 0.95, {}, "Batch.", None, None, "decode", "open")
UNKNOWN = replace(
    NAMED, workload="train", cause="unknown", loss_share=0.9, phase="train", evidence={"not_told": "clocks, rank skew"}
)


def test_named_first() -> None:
    """The named cause stays; the others are one sentence, largest first, with each signal that is missing once."""
    other = replace(UNKNOWN, workload="serve", loss_share=0.95, phase="prefill", evidence={"not_told": "clocks"})
    named, rest = parted((UNKNOWN, NAMED, other))
    assert named == (NAMED,)
    assert rest is not None
    assert rest.rows == (other, UNKNOWN)
    assert rest.sentence == "2 shortfalls have no cause that is known: serve, prefill (95.0 %), train (90.0 %)."
    assert rest.remedy.endswith("not told of each of them: clocks, rank skew.")


def test_many_and_none() -> None:
    """Of many the four largest are named and the rest counted; of none nothing is said."""
    many = tuple(replace(UNKNOWN, workload=f"w{number}", loss_share=number / 10, evidence={}) for number in range(1, 8))
    _, rest = parted(many)
    assert rest is not None
    assert rest.sentence.endswith("w7 (70.0 %), w6 (60.0 %), w5 (50.0 %), w4 (40.0 %) and 3 more.")
    assert "not told" not in rest.remedy
    assert parted((NAMED,)) == ((NAMED,), None)
