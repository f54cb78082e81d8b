"""Step spans that are filled into another's bytes, against those that are made and encoded one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.export import allowed
from mfu_sdk.export.encode import Common, Layered, encode
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.step_template import StepEncoder
from mfu_sdk.export.windows import Windows

from .conftest import EPOCH_NS, IDENTITY, SERVED, make_step

KEPT = (Kept("all", 1.0), Kept("periodic", 0.125), Kept("last", None))
NUMBERS = st.none() | st.floats() | st.integers(-(2**70), 2**70)
OWN = ("mfu", "hfu", "achievable_mfu", "data_wait_s", "device_s", "batch_running", "expected_feasible_mfu")
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(OWN, NUMBERS),
        "duration_s": st.floats(0, 1e4),
        "index": st.integers(0, 2**63 - 1),
        "start_unix_ns": st.integers(EPOCH_NS, EPOCH_NS + 40 * 10**9),
        "model_flops": st.sampled_from([None, 0, 10**19]),
        "tokens": st.sampled_from([7, 2**63]),
        "phase": st.sampled_from(["train", "eval"]),
        "count_source": st.sampled_from(["cached", "measured"]),
        "error_type": st.sampled_from([None, "ValueError"]),
        "profiled": st.booleans(),
        "queue_waiting": st.sampled_from([None, 2.0]),
    },
)


def everything(span):
    """What a tenant's own collector is told."""
    return span


def the_providers(span):
    """What may go to a provider, of both layers of a step's attributes."""
    common = Common(allowed.attributes(span.attributes.common.attributes))
    return span._replace(attributes=Layered(common, allowed.attributes(span.attributes.own)))


@pytest.mark.parametrize("allow", [everything, the_providers])
@given(changes=st.lists(st.tuples(CHANGES, st.sampled_from(KEPT)), min_size=1, max_size=8))
def test_the_same_bytes(allow, changes):
    """Of any steps, one after the other, between others that are as most are."""
    spans, windows = Spans(IDENTITY), Windows()
    encoder = StepEncoder(spans, allow)
    for index, (odd, kept) in enumerate(changes):
        other = make_step(**{"index": index, "start_unix_ns": EPOCH_NS, **odd})
        for step in (make_step(index), other, other):
            window, _ = windows.add(step)
            assert encoder.encode(step, window, kept) == encode(allow(spans.step(step, window, kept)))


def test_most_steps_take_the_short_way(monkeypatch):
    """Of a window's, the first and each that tells something else are made as spans, and no other is."""
    spans, windows = Spans(IDENTITY), Windows()
    made = []
    long_way = spans.step
    monkeypatch.setattr(spans, "step", lambda step, *rest: made.append(step.index) or long_way(step, *rest))
    encoder = StepEncoder(spans, everything)
    others = {
        5: {"error_type": "ValueError"},
        8: {"device_s": 0.5},
        12: {"mfu": float("nan")},
        15: SERVED,
        17: {"model_flops": 41},
        20: {"profiled": True},
    }
    for index in range(40):
        step = make_step(index, **others.get(index, {}))
        window, _ = windows.add(step)
        encoder.encode(step, window, KEPT[0])
    # Where what is told or what is alike has changed, there and back; a new window begins with step 30.
    assert made == [0, 5, 8, 9, 12, 13, 15, 17, 18, 20, 30]
