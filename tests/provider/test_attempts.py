"""Steps that a later attempt did again: by hand, by laws, and from the windows of a run that was restarted."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk import semconv
from mfu_sdk.provider import attempts, rollup
from mfu_sdk.provider.attempts import Lost, Redone, Steps, share_done_again
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import SpanRow, Store

Make = Callable[..., SpanRow]
approx: Any = pytest.approx
"""Its own type is equal to nothing in mypy's eyes."""
SPANS = st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@pytest.mark.parametrize(
    ("steps", "later", "share"),
    [
        # Steps 100 to 199, resumed at 150 and taken to 180: 31 of 100.
        ((100, 199), [(150, 180)], 0.31),
        ((100, 199), [(150, 900)], 0.5),
        ((100, 199), [(50, 900)], 1.0),
        ((100, 199), [(200, 900)], 0.0),
        # Two later attempts that overlap count once: 150 to 189.
        ((100, 199), [(150, 180), (160, 189)], 0.4),
        ((100, 199), [(190, 195), (110, 119)], 0.16),
        ((100, 199), [], 0.0),
        # From step 0 on: anew, or from a checkpoint that is not told of.
        ((0, 99), [(0, 500)], 0.0),
        ((7, 7), [(7, 7)], 1.0),
    ],
    ids=["some", "half", "all", "none", "overlapping", "apart", "no restart", "from the start", "one step"],
)
def test_share_by_hand(steps: Steps, later: list[Steps], share: float) -> None:
    """The share of a row's steps that is in any later attempt's."""
    assert share_done_again(steps, later) == approx(share)


@given(SPANS, st.lists(SPANS, max_size=4))
def test_share_is_that_of_the_union(steps: Steps, later: list[Steps]) -> None:
    """However attempts lie, the share is that of the numbers that are in any of them, whatever their order."""
    done = {number for first, last in later if first > 0 for number in range(first, last + 1)}
    mine = set(range(steps[0], steps[1] + 1))
    assert share_done_again(steps, later) == approx(len(mine & done) / len(mine))
    assert share_done_again(steps, later[::-1]) == share_done_again(steps, later)


def of(attempt: int, first: int, **more: Any) -> dict[str, Any]:
    """A window of ten steps of one attempt from step `first` on, of 30 s and 1,000 tokens."""
    return {
        "resource": {semconv.RUN_ATTEMPT: attempt, **more.pop("resource", {})}, "mfu__phase": "train",
        "mfu__window__step__first": first, "mfu__step__time": 30.0, "mfu__token__count": 1000, **more,
    }  # fmt: skip


def found(store: Store, span: Range, tenant: str) -> dict[str, Lost]:
    """What this tenant lost, by device."""
    identities = {usage.identity: usage.device for usage in rollup.usages(store, span, tenant)}
    lost = attempts.redone(store, span).lost
    return {device: lost[identity] for identity, device in identities.items() if identity in lost}


def test_a_run_that_was_restarted(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Forty steps, and a restart from a checkpoint at 25: fifteen steps of each rank were done again.

    Step 20 to 29 are one window: half of its 30 s and 1,000 tokens, and all of the next one.
    """
    ranks = [{semconv.HW_ID: f"GPU-{rank}", semconv.DIST_RANK: rank} for rank in (0, 1)]
    rows = [window(60 * n, **of(0, 10 * n, resource=who)) for who in ranks for n in range(4)]
    rows += [window(600 + 60 * n, **of(1, 25 + 10 * n, resource=who)) for who in ranks for n in range(4)]
    store.insert_spans(tenant, rows)
    # All of the attempt's steps of the hour are one row, 0 to 39: 15 of 40 of 120 s and of 4,000 tokens.
    lost = Lost(approx(45.0), approx(1500.0))
    assert found(store, hour, tenant) == {"GPU-0": lost, "GPU-1": lost}


def test_a_checkpoint_nobody_tells_of(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """An attempt that numbers its steps from 0 again may have resumed anywhere: nothing is lost, and that is said."""
    before = attempts.redone(store, hour).untold_runs
    store.insert_spans(tenant, [window(60 * n, **of(n, 0)) for n in range(2)])
    now = attempts.redone(store, hour)
    assert found(store, hour, tenant) == {}
    assert now.untold_runs == before + 1
    assert "start_step=" in now.notes[0]
    assert Redone({}).notes == ()


def test_other_runs_and_phases(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Another run's steps, another tenant's run of the same id, and evaluation take nothing from this one."""
    rows = [window(0, **of(0, 10)), window(60, **of(1, 15, resource={semconv.RUN_ID: "another"}))]
    rows.append(window(120, **of(1, 10, mfu__phase="eval")))
    store.insert_spans(tenant, rows)
    store.insert_spans(f"{tenant}-2", [window(60, **of(1, 15, resource={semconv.TENANT_ID: f"{tenant}-2"}))])
    assert found(store, hour, tenant) == {}


def test_lost_once_it_is_done_again(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """The restart may come after the range: what it did again was lost within it all the same."""
    store.insert_spans(tenant, [window(0, **of(0, 10)), window(7200, **of(1, 15))])
    assert found(store, hour, tenant) == {"node-1/0": Lost(approx(15.0), approx(500.0))}
    later = Range(hour.until_unix_ns, hour.until_unix_ns + 2 * 3600 * 10**9)
    assert found(store, later, tenant) == {}
