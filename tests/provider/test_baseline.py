"""What runs of one configuration reach, by hand."""

from mfu_sdk import semconv
from mfu_sdk.provider.baseline import Reached, reached
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import Store

from .conftest import Make

FINGERPRINT = "0123456789abcdef"


def test_runs_by_device_and_ranks(store: Store, tenant: str, window: Make, hour: Range) -> None:
    """Sums over a run's ranks and windows first, then least, median and most over runs; others are in none."""

    def of(run_id: str, **more: object) -> dict[str, object]:
        return {semconv.RUN_ID: run_id, semconv.CONFIG_FINGERPRINT: FINGERPRINT, **more}

    rows = [
        # 1 and 3 of 4 available on two ranks: half of it, not the mean of anything else.
        window(0, resource=of("run-1", **{semconv.DIST_RANK: 0}), mfu__model__flop=1.0, mfu__available__flop=4.0),
        window(1, resource=of("run-1", **{semconv.DIST_RANK: 1}), mfu__model__flop=3.0, mfu__available__flop=4.0),
        window(2, resource=of("run-2"), mfu__model__flop=1.0, mfu__available__flop=4.0),
        window(3, resource=of("run-3"), mfu__model__flop=3.0, mfu__available__flop=4.0),
        window(4, resource=of("run-4", **{semconv.HW_NAME: "A100"}), mfu__model__flop=1.0, mfu__available__flop=5.0),
        # Nothing to divide by, another configuration, and outside of the range.
        window(5, resource=of("run-5"), mfu__model__flop=1.0, mfu__available__flop=None),
        window(6, resource={semconv.RUN_ID: "run-6", semconv.CONFIG_FINGERPRINT: "f" * 16}),
        window(7200, resource=of("run-7")),
    ]
    store.insert_spans(tenant, rows)
    assert reached(store, FINGERPRINT, hour, tenant) == (
        Reached("A100", 1, 1, 0.2, 0.2, 0.2, 9, 3.0),
        Reached("H100", 1, 3, 0.25, 0.5, 0.75, 36, 3.0),
    )
    assert reached(store, FINGERPRINT, hour, "another") == ()
