"""Work at another batch: its roofline again, by hand."""

import pytest

from mfu_sdk.counting.batched import Between, Counted, batched
from mfu_sdk.records import OpCost, Peaks, Rate
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.fitting import Fitting, fitting

RATE = Rate(1000.0, 1000.0, 1000.0, "user", 0.0)
PEAKS = Peaks("cpu", {}, {"float32": RATE}, RATE, None, {})
# Of 1,000 bytes 900 are weights; an attention's cache is each sequence's own; two norms add to each row.
PRODUCT = OpCost("aten::mm", "float32", 100, 1000, 1, 900)
CACHE = OpCost("aten::_scaled_dot_product", "float32", 10, 500, 1)
NORM = OpCost("aten::native_layer_norm", "none", 0, 30, 2, 10)


@pytest.mark.parametrize(
    ("op", "times", "seconds"),
    [
        (PRODUCT, 1.0, 1.0),
        # 500 FLOPs and 900 + 500 bytes.
        (PRODUCT, 5.0, 1.4),
        # 10,000 FLOPs, of which 900 + 10,000 bytes are still more; the ridge is where the weights are nothing.
        (PRODUCT, 100.0, 10.9),
        (OpCost("aten::mm", "float32", 400, 1000, 1, 900), 5.0, 2.0),
        (CACHE, 5.0, 2.5),
        (NORM, 5.0, 2 * 0.11),
        (PRODUCT, 0.5, 0.95),
    ],
    ids=["as counted", "more", "many", "bound by compute", "a cache", "two norms", "fewer"],
)
def test_weights_are_read_once(op: OpCost, times: float, seconds: float) -> None:
    """FLOPs and activations grow with the batch, weights do not, and the larger of two times counts."""
    assert Counted((op,), PEAKS).seconds(times) == pytest.approx(seconds)
    assert Counted((op,), PEAKS, devices=2).seconds(times) == pytest.approx(seconds / 2)


def test_without_weights_nothing_is_known() -> None:
    """Where no operator shows its weights they would be taken to grow too; and a rate may be missing."""
    assert batched([CACHE], PEAKS, 1) is None
    found = batched([PRODUCT, CACHE], PEAKS, 1)
    assert found is not None
    assert found.seconds(5.0) == pytest.approx(1.4 + 2.5)
    other = batched([OpCost("aten::mm", "int8", 100, 1000, 1, 900)], PEAKS, 1)
    assert other is not None
    assert other.seconds(2.0) is None


def test_between_two_counts() -> None:
    """A call whose cost was predicted lies as far between its neighbours at any batch."""
    near, far = Counted((PRODUCT,), PEAKS), Counted((PRODUCT, CACHE), PEAKS)
    assert Between(near, far, 0.5).seconds(5.0) == pytest.approx(1.4 + 2.5 / 2)


def test_a_call_as_if_more_fit() -> None:
    """Two sequences where ten would fit: five times the FLOPs, in the roofline's time of that."""
    demand = Demand(100, 100, {"float32": 100}, 0, 0, 1000, 1000.0, 1.0, "cached", Counted((PRODUCT,), PEAKS))
    assert fitting(demand, 2, 10.0) == Fitting(500.0, pytest.approx(1.4))
    both = Fitting(500.0, 1.5) + Fitting(1.0, 0.5)
    assert both == Fitting(501.0, 2.0)
    for unknown in (
        fitting(None, 2, 10.0),
        fitting(demand, 0, 10.0),
        fitting(demand, 2, None),
        fitting(demand, 2, 0.0),
    ):
        assert unknown is None
    # A sum's calls may have had other batches.
    assert (demand + demand).batched is None
    assert demand.times(3).batched is None
