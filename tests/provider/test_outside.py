"""Steps at times when their tenant held nothing on their host, or not that GPU, by hand."""

from collections.abc import Callable

import pytest

from mfu_sdk import semconv
from mfu_sdk.provider import rollup
from mfu_sdk.provider.books import Allocation, Holdings, Inventory, Node
from mfu_sdk.provider.contested import contested
from mfu_sdk.provider.outside import outside
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import SpanRow, Store

Make = Callable[..., SpanRow]
T0 = 1_780_000_200 * 10**9
"""2026-05-28T20:30:00Z."""
DAY = Range(T0 - 30 * 60 * 10**9, T0 + 150 * 60 * 10**9)
"""From 20:00 to 23:00."""


def held(tenant: str, *spans: tuple[int, int], host: str = "node-1") -> Holdings:
    """Allocations of one GPU on `host`, from and until minutes after T0."""
    node = Node(host, "H100", 8, None, (), None, None, None, None, ())
    rows = (
        Allocation(tenant, None, None, host, 1, (), None, "on_demand", T0 + since * 60 * 10**9, T0 + until * 60 * 10**9)
        for since, until in spans
    )
    return Holdings(Inventory((node,), tuple(rows)))


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        # 20:30 to 22:30 in windows that fill the time: 30, 60 and 30 minutes of three hours.
        ([(-30, 150)], None),
        ([(-30, 60), (60, 150)], None),
        ([(0, 120)], None),
        # Until 21:00: all of the next hour and half an hour of the one after, a minute of each let through.
        ([(-30, 30)], 3540 + 1740),
        # 21:00 to 21:40, and again from 22:00 on: half an hour before it, and twenty minutes between.
        ([(30, 70), (90, 150)], 1740 + 1140),
        # Two that overlap are no more than one: 21:00 to 21:40.
        ([(30, 60), (40, 70)], 1740 + 1140 + 1740),
        ([(-300, -200)], None),
    ],
    ids=["all along", "in two parts", "exactly", "a part", "two parts", "overlapping", "never in the range"],
)
def test_by_hand(store: Store, tenant: str, window: Make, spans: list[tuple[int, int]], seconds: float | None) -> None:
    """What steps have beyond the time held, hour by hour."""
    who = {semconv.HW_ID: f"GPU-{tenant}"}
    store.insert_spans(tenant, [window(300 * n, resource=who, mfu__step__time=300.0) for n in range(24)])
    found = outside(store, DAY, held(tenant, *spans))
    assert found == ({} if seconds is None else {(tenant, "node-1", f"GPU-{tenant}"): pytest.approx(seconds)})


def test_other_tenants_times_are_none_of_ones_own(store: Store, tenant: str, window: Make) -> None:
    """Another tenant's allocation of the host covers nothing, and its steps are its own."""
    who = {semconv.HW_ID: f"GPU-{tenant}"}
    store.insert_spans(tenant, [window(300 * n, resource=who, mfu__step__time=300.0) for n in range(6)])
    both = Inventory(
        held(tenant, (30, 60)).inventory.nodes,
        (*held(tenant, (30, 60)).inventory.allocations, *held(f"{tenant}-2", (-30, 30)).inventory.allocations),
    )
    assert outside(store, DAY, Holdings(both)) == {(tenant, "node-1", f"GPU-{tenant}"): pytest.approx(1740.0)}


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        # The tenant's until 21:00, another's from then on: as above, an hour and a half less two minutes.
        ([("me", True, -30, 30), ("other", True, 30, 150)], ("held_by_another", 5280.0)),
        # The tenant holds some GPU of the node all along, and so this one until another's allocation names it.
        ([("me", False, -30, 150), ("other", True, 30, 150)], ("held_by_another", 5280.0)),
        ([("me", False, -30, 150), ("other", False, -30, 150), ("me", True, -99, -60)], None),
        ([("me", True, -30, 30), ("me", False, 30, 150)], None),
        ([("me", True, -30, 30)], ("not_held", 5280.0)),
        # No record knows the UUID: it is known by its node alone, which `outside` looks at.
        ([("me", False, -30, 30), ("other", False, 30, 150)], None),
        ([("other", True, -30, 150)], ("held_by_another", 7200.0)),
    ],
    ids=["changes hands", "named later", "unnamed", "two of one", "after its end", "no record", "another's"],
)
def test_a_gpu_is_its_holder_s(
    store: Store,
    tenant: str,
    window: Make,
    rows: list[tuple[str, bool, int, int]],
    found: tuple[str, float] | None,
) -> None:
    """Two hours of steps from 20:30 on, on a GPU that allocations name, or do not, from and until minutes after T0."""
    gpu, other = f"GPU-{tenant}", f"{tenant}-2"
    who = {semconv.HW_ID: gpu}
    store.insert_spans(tenant, [window(300 * n, resource=who, mfu__step__time=300.0) for n in range(24)])
    node = Node("node-1", "H100", 8, None, (), None, None, None, None, ())
    minute = 60 * 10**9
    held = tuple(
        Allocation(
            tenant if name == "me" else other, None, None, "node-1", 1, (gpu,) if named else (), None, "on_demand",
            T0 + since * minute, T0 + until * minute,
        )
        for name, named, since, until in rows
    )  # fmt: skip
    told = contested(store, DAY, Holdings(Inventory((node,), held)), rollup.usages(store, DAY, tenant))
    if found is None:
        assert told == ()
        return
    (each,) = told
    assert (each.why, each.of_hours) == (found[0], 2.0)
    assert each.hours * 3600 == pytest.approx(found[1])
    assert each.others == ((other,) if found[0] == "held_by_another" else ())
