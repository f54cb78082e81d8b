"""The economics: a waterfall that closes, factors that multiply, and figures that a pocket calculator gives too."""

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import inf, nan, prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_sdk.provider import economics
from mfu_sdk.provider.attempts import Lost, Redone
from mfu_sdk.provider.books import Holdings, Snapshot, load_inventory, load_prices
from mfu_sdk.provider.contested import Contested
from mfu_sdk.provider.economics import STAGES, Assessment, Economics, Held, Ledger, Losses, Owned, Used
from mfu_sdk.provider.economics.accounts import revenue_of, worth
from mfu_sdk.provider.economics.cents import apportioned, cents
from mfu_sdk.provider.economics.inputs import HOUR_NS, PFLOP_HOUR
from mfu_sdk.provider.economics.planning import Pair, Side, new_hardware, pairs, plan
from mfu_sdk.provider.economics.pricing import Claim
from mfu_sdk.provider.economics.waterfall import split
from mfu_sdk.provider.rollup import Sums, Usage

H100 = "NVIDIA H100 80GB HBM3"
H200 = "NVIDIA H200"
PEAK = 1e15
DAY = 24 * HOUR_NS


def node(host: str = "n1", gpu_type: str = H100, gpus: int = 1, rate: str = "2", **ns: int) -> Owned:
    """A node over a day: what is not given in `ns` is held."""
    owned = ns.get("owned_ns", gpus * DAY)
    down, stranded, unsold = (ns.get(name, 0) for name in ("unavailable_ns", "stranded_ns", "unsold_ns"))

    def cost(of_ns: int) -> Fraction:
        return Fraction(rate) * of_ns / HOUR_NS

    amounts = cost(owned), cost(down), cost(stranded), cost(unsold)
    return Owned(host, gpu_type, gpus, owned, down, stranded, unsold, *amounts)


def held(host: str = "n1", gpu_type: str = H100, gpus: int = 1, **more: Any) -> Held:
    """An allocation over a day at a cost of 2 and a price of 3 an hour."""
    ns = more.pop("gpu_ns", gpus * DAY)
    hours = Fraction(ns, HOUR_NS)
    fields: dict[str, Any] = {
        "tenant": "acme",
        "workload": "w",
        "allocation_id": "a1",
        "contract": "on_demand",
        "cost": 2 * hours,
        "bill": 3 * hours,
        "per_million_tokens": None,
        "list_value": 3 * hours,
    }
    return Held(host=host, gpu_type=gpu_type, gpus=gpus, gpu_ns=ns, **fields | more)


def used(hours: float = 24.0, mfu: float = 0.3, **more: Any) -> Used:
    """One device's steps at an MFU of the peak, with nothing else known."""
    seconds = hours * 3600
    fields: dict[str, Any] = {
        "held": 0,
        "tenant": "acme",
        "workload": "w",
        "phase": "train",
        "device": "GPU-0",
        "host": "n1",
        "gpu_type": H100,
        "sm_share": Fraction(1),
        "device_s": seconds,
        "unknown_s": 0.0,
        "model_flops": mfu * PEAK * seconds,
        "peak_flops_per_s": PEAK,
    }
    return Used(**fields | more)


def ledger(owned: tuple[Owned, ...], rows: tuple[Held, ...]) -> Ledger:
    return Ledger(0, DAY, owned, rows)


def hours(row: Used, step_hours: float = 24.0) -> dict[str, float]:
    """A row's split in hours, without the stages that have none."""
    return {k: v / HOUR_NS for k, v in split(row, round(step_hours * HOUR_NS)).gpu_ns.items() if v}


# --- cents ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.fractions(0, 10**9, max_denominator=10**12), max_size=20))
@settings(max_examples=50)
def test_cents_add_up(parts: list[Fraction]) -> None:
    """Parts in cents add up to the rounded whole, each within a cent of its amount."""
    found = apportioned(parts)
    assert sum(found) == cents(sum(parts, Fraction(0)))
    assert all(abs(got - part * 100) <= 1 for got, part in zip(found, parts, strict=True))


def test_largest_remainder() -> None:
    """Three thirds of a unit are 34, 33 and 33 cents; the cent goes to the first of equal remainders."""
    assert apportioned([Fraction(1, 3)] * 3) == (34, 33, 33)
    assert apportioned([Fraction("0.006"), Fraction("0.004")]) == (1, 0)
    assert apportioned([]) == ()


# --- the waterfall -------------------------------------------------------------------------------------------------


def test_named_losses() -> None:
    """24 h of steps by hand: waits as measured, claims of the rest, out of reach by the work done, the gap the rest.

    Useful 0.3 × 24 = 7.2; at an expected MFU of 0.6 that work takes 12, so 4.8 is out of reach.
    24 − 7.2 − (2.4 + 1.2 + 1.2 + 2.4 + 1.2) − 4.8 = 3.6 is the kernel gap.
    """
    row = used(
        expected_mfu=0.6,
        data_s=0.1 * 86_400,
        skew_s=0.05 * 86_400,
        comm_s=0.15 * 86_400,
        losses=Losses(topology=0.05, clock=0.05),
    )
    assert hours(row) == pytest.approx(
        {
            "input": 2.4,
            "skew": 1.2,
            "comm_topology": 1.2,
            "comm_scale": 2.4,
            "clock": 1.2,
            "unattainable": 4.8,
            "kernel_gap": 3.6,
            "useful": 7.2,
        }
    )


def test_drift_takes_the_rest() -> None:
    """Of a drift that claims 70 %, what waits have taken stays theirs, and nothing is taken of what was useful."""
    row = used(mfu=0.3, expected_mfu=0.6, data_s=0.5 * 86_400, losses=Losses(drift=0.7))
    assert hours(row) == pytest.approx({"input": 12.0, "drift": 4.8, "useful": 7.2})
    alone = replace(row, data_s=None)
    assert hours(alone) == pytest.approx({"drift": 16.8, "useful": 7.2})


def test_lost_work_keeps_proportions() -> None:
    """Steps done again are lost with all that was in them: the rest is split as before, over fewer hours."""
    row = used(mfu=0.25, expected_mfu=0.5, data_s=0.2 * 86_400, lost_s=0.5 * 86_400)
    whole, half = hours(replace(row, lost_s=None)), hours(row)
    assert half.pop("lost_work") == pytest.approx(12.0)
    assert half == pytest.approx({stage: value / 2 for stage, value in whole.items()})
    assert split(row, DAY).useful_flops == pytest.approx(row.model_flops / 2)


def test_more_than_expected() -> None:
    """An MFU above the expected one leaves nothing out of reach; one above 1 is cut to the time that there was."""
    assert hours(used(mfu=0.5, expected_mfu=0.4)) == pytest.approx({"unattainable": 12.0, "useful": 12.0})
    assert hours(used(mfu=3.0, expected_mfu=0.4, data_s=86_400.0)) == pytest.approx({"useful": 24.0})
    assert split(used(mfu=3.0), DAY).useful_flops == pytest.approx(PEAK * 86_400)


def test_without_expectation() -> None:
    """Where nothing is expected of the work, what is out of reach is not told apart from the kernel gap."""
    assert hours(used(mfu=0.25)) == pytest.approx({"kernel_gap": 18.0, "useful": 6.0})


def test_unobserved_is_not_idle() -> None:
    """Of eight GPUs two sent steps, half of the time: a quarter is observed, and only of that half is idle."""
    books = ledger((node(gpus=8),), (held(gpus=8),))
    rows = [used(hours=12, device=f"GPU-{i}") for i in range(2)]
    found = economics.waterfall(books, rows).by_stage()
    assert found["unobserved"][0] == 6 * DAY
    assert found["idle"][0] == DAY
    # 6 × 24 h at 2 an hour.
    assert found["unobserved"][1] == 288


def test_unknown_flops_are_unobserved() -> None:
    """Steps whose FLOPs nobody knows are neither idle nor useless."""
    books = ledger((node(),), (held(),))
    found = economics.waterfall(books, [used(hours=6, unknown_s=6 * 3600.0)]).by_stage()
    assert (found["unobserved"][0], found["idle"][0]) == (DAY // 4, DAY // 2)


def test_more_steps_than_time() -> None:
    """Steps that do not fit into the time held are cut in proportion, and how much did not fit is known."""
    books = ledger((node(),), (held(),))
    rows = [used(hours=24, workload="a", mfu=0.2), used(hours=24, workload="b", mfu=0.4)]
    found = economics.waterfall(books, rows)
    assert found.excess_ns == DAY
    assert [one.step_ns for one in found.splits] == [DAY // 2, DAY // 2]
    assert [one.useful_flops / (PEAK * 86_400) for one in found.splits] == pytest.approx([0.1, 0.2])


def test_slices() -> None:
    """Two slices of 3/7 that work all day: their hours count by their share of the SMs, and so does their peak."""
    ns = 2 * (3 * DAY // 7)
    books = ledger((node(stranded_ns=DAY - ns),), (held(gpus=2, gpu_ns=ns),))
    share = Fraction(3, 7)
    rows = [used(mfu=0.3 * 3 / 7, sm_share=share, device=f"MIG-{i}") for i in range(2)]
    found = economics.waterfall(books, rows)
    sums = found.by_stage()
    assert sums["useful"][0] / ns == pytest.approx(0.3)
    assert sum(value for value, _ in sums.values()) == DAY
    factors = economics.capacity(books, found, {H100: PEAK})
    assert factors.step == pytest.approx(0.3)
    assert factors.owned_mfu == pytest.approx(0.3 * 6 / 7)


_NUMBERS = st.one_of(
    st.floats(0, 1e6), st.floats(allow_nan=True, allow_infinity=True), st.just(0.0), st.just(inf), st.just(nan)
)
_SHARES = st.one_of(st.floats(0, 1), st.floats(0, 10), st.floats(-1, 0))
_UNKNOWN = st.one_of(st.none(), _NUMBERS)


@st.composite
def _use(draw: st.DrawFn, count: int) -> Used:
    return Used(
        held=draw(st.integers(0, count - 1)),
        tenant="acme",
        workload=draw(st.sampled_from(["a", "b", None])),
        phase="train",
        device=draw(st.sampled_from(["GPU-0", "GPU-1", "GPU-2"])),
        host="n1",
        gpu_type=H100,
        sm_share=draw(st.sampled_from([Fraction(1), Fraction(1, 7), Fraction(3, 7)])),
        device_s=draw(st.one_of(st.floats(0, 200_000), st.just(0.0), st.floats(1e-12, 1e-6))),
        unknown_s=draw(st.floats(0, 100_000)),
        model_flops=draw(st.one_of(st.floats(0, 1e24), st.floats(0, 1e300))),
        peak_flops_per_s=draw(st.one_of(st.just(PEAK), st.floats(0, 1e20))),
        expected_mfu=draw(_UNKNOWN),
        data_s=draw(_UNKNOWN),
        comm_s=draw(_UNKNOWN),
        skew_s=draw(_UNKNOWN),
        lost_s=draw(_UNKNOWN),
        losses=Losses(*draw(st.tuples(_SHARES, _SHARES, _SHARES, _SHARES))),
        weight=draw(st.sampled_from([1.0, 0.5])),
    )


@st.composite
def _books(draw: st.DrawFn) -> tuple[Ledger, list[Used]]:
    owned, rows = [], []
    for place in range(draw(st.integers(1, 3))):
        gpus = draw(st.integers(1, 8))
        rate = draw(st.fractions(0, 100, max_denominator=10**6))
        cuts = sorted(draw(st.lists(st.integers(0, gpus * DAY), min_size=4, max_size=4)))
        parts = [b - a for a, b in pairwise([0, *cuts, gpus * DAY])]
        down, stranded, unsold = parts[:3]
        whole = gpus * DAY
        amounts = rate * whole, rate * down, rate * stranded, rate * unsold
        costs = [each / HOUR_NS for each in amounts]
        owned.append(
            Owned(f"n{place}", H100, gpus, whole, down, stranded, unsold, costs[0], costs[1], costs[2], costs[3])
        )
        rows += [held(host=f"n{place}", gpus=gpus, gpu_ns=ns, cost=rate * ns / HOUR_NS) for ns in parts[3:]]
    return ledger(tuple(owned), tuple(rows)), draw(st.lists(_use(len(rows)), max_size=6))


@given(_books())
@settings(max_examples=60)
def test_closes(drawn: tuple[Ledger, list[Used]]) -> None:
    """Whatever rows claim, hours add up to the owned ones exactly, costs to the cent, and no stage is negative."""
    books, rows = drawn
    found = economics.waterfall(books, rows)
    sums = found.by_stage()
    assert list(sums) == list(STAGES)
    assert sum(ns for ns, _ in sums.values()) == sum(each.owned_ns for each in books.owned)
    assert all(ns >= 0 and cost is not None and cost >= 0 for ns, cost in sums.values())
    cost = sum((each.cost or Fraction(0) for each in books.owned), Fraction(0))
    stages = economics.stages(found)
    assert sum(round((stage.cost or 0) * 100) for stage in stages) == round(cost * 100)
    assert all(one.useful_flops >= 0 for one in found.splits)


# --- factors -------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=2),
    st.lists(st.floats(0.1, 24), min_size=2, max_size=2),
    st.floats(0.1, 10),
)
def test_factors(mfus: list[float], run: list[float], faster: float) -> None:
    """Owned MFU is ΣF over Σ peak × owned time, and is the product of its factors, over types of any peaks."""
    peaks = {H100: PEAK, H200: PEAK * faster}
    books = ledger(
        (node(gpus=2, unsold_ns=DAY), node("n2", H200, 3, unavailable_ns=DAY, unsold_ns=DAY)),
        (held(), held("n2", H200)),
    )
    rows = [
        used(run[0], mfus[0]),
        used(run[1], mfus[1] * faster, held=1, host="n2", gpu_type=H200, peak_flops_per_s=PEAK * faster),
    ]
    found = economics.capacity(books, economics.waterfall(books, rows), peaks)
    flops = sum(row.model_flops for row in rows)
    assert found.owned_mfu == pytest.approx(flops / (86_400 * (2 * PEAK + 3 * PEAK * faster)))
    factors = (found.allocation, found.runtime, found.step)
    assert found.owned_mfu == pytest.approx(prod(factor for factor in factors if factor is not None))


def test_unknown_factors() -> None:
    """Without a peak of an owned type there is no owned MFU; without anything held no step factor."""
    books = ledger((node(unsold_ns=DAY),), ())
    found = economics.waterfall(books, [])
    assert economics.capacity(books, found, {}).owned_mfu is None
    idle = economics.capacity(books, found, {H100: PEAK})
    assert (idle.owned_mfu, idle.allocation, idle.runtime, idle.step) == (0.0, 0.0, None, None)


# --- books to money ------------------------------------------------------------------------------------------------

PRICES = f"""
currency: USD
prices:
  - {{gpu_type: "{H100}", contract: on_demand, per_gpu_hour: 2.95, from: 2026-01-01, until: 2026-11-01T12:00:00Z}}
  - {{gpu_type: "{H100}", contract: on_demand, per_gpu_hour: 3.45, from: 2026-11-01T12:00:00Z}}
  - {{gpu_type: "{H100}", contract: reserved, per_gpu_hour: 1.80, commitment_hours: 8760}}
  - {{tenant: initech, contract: per_token, per_million_tokens: 0.60}}
costs:
  - {{gpu_type: "{H100}", per_gpu_hour: 2.10, capex_per_gpu: 30000}}
"""
ALL_DAY = "from: 2026-11-01, until: 2026-11-02"


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


def books(tmp_path: Path, inventory: str, prices: str | None = PRICES) -> Snapshot:
    (tmp_path / "inventory.yaml").write_text(inventory, "utf-8")
    held = load_inventory([tmp_path / "inventory.yaml"])
    if prices is None:
        return Snapshot(inventory=held)
    (tmp_path / "prices.yaml").write_text(prices, "utf-8")
    return Snapshot(*load_prices([tmp_path / "prices.yaml"]), held)


def inventory(allocations: str, gpus: int = 8, more: str = "") -> str:
    return f"""
nodes: [{{host: n1, gpu_type: "{H100}", gpus: {gpus}, from: 2026-01-01{more}}}]
allocations: [{allocations}]
"""


def usage(hours_each: float, mfu: float, device: str, tenant: str = "acme", **more: Any) -> Usage:
    """What one device did for one workload, against the peak of an H100 on paper."""
    peak = 989_429_760_000_000.0
    seconds = hours_each * 3600
    sums = {
        "timed_steps": 100.0,
        "unknown_steps": 0.0,
        "model_flops": mfu * peak * seconds,
        "available_flops": peak * seconds,
        "device_s": seconds,
    }
    sums |= more.pop("sums", {})
    fields: dict[str, Any] = {"workload": "w", "gpu_type": H100, "host": "n1", "phase": "train"}
    fields["run_ids"] = ("r",)
    return Usage(tenant=tenant, family=None, world_size=8, device=device, sums=Sums(**sums), **fields | more)


def assessed(held: Snapshot, usages: list[Usage], **more: Any) -> Assessment:
    return economics.assess(held, usages, at("2026-11-01"), at("2026-11-02"), **more)


def money(held: Snapshot, usages: list[Usage], **more: Any) -> Economics:
    found = assessed(held, usages, **more).economics
    assert found is not None
    return found


def test_useful_pflop_hour(tmp_path: Path) -> None:
    """At 2.10 an hour, 0.989 PFLOP/s and an MFU of 0.30 a useful PFLOP-hour costs 2.10 / (0.989 × 0.30) = 7.08."""
    held = books(tmp_path, inventory(f"{{tenant: acme, host: n1, gpus: 8, contract: on_demand, {ALL_DAY}}}"))
    found = money(held, [usage(24, 0.30, f"GPU-{i}") for i in range(8)])
    assert found.cost_per_useful_pflop_hour == pytest.approx(2.10 / (0.98942976 * 0.30))
    assert f"{found.cost_per_useful_pflop_hour:.2f}" == f"{found.cost_per_useful_pflop_hour_observed:.2f}" == "7.07"
    assert f"{2.10 / (0.989 * 0.30):.2f}" == "7.08"
    assert not found.cost_is_upper_bound


def test_prices_of_the_moment(tmp_path: Path) -> None:
    """A price that changes at noon bills each half at its own; downtime is neither billed nor available."""
    down = ", downtime: [{from: 2026-11-01T18:00:00Z, until: 2026-11-02}]"
    held = books(tmp_path, inventory(f"{{tenant: acme, host: n1, gpus: 4, contract: on_demand, {ALL_DAY}}}", more=down))
    found = money(held, [])
    # 4 × (12 × 2.95 + 6 × 3.45), and 8 × 24 × 2.10.
    assert found.revenue == 224.40
    assert found.cost == 403.20
    assert found.margin == -178.80
    assert found.margin_per_gpu_hour == pytest.approx(-178.80 / 192)
    stages = {stage.stage: stage.gpu_hours for stage in found.waterfall if stage.gpu_hours}
    assert stages == {"unavailable": 48, "unsold": 72, "unobserved": 72}
    assert found.cost_is_upper_bound


def test_contracts(tmp_path: Path) -> None:
    """By the hour the tenant bears what it does with its hours, by the token the provider; what is unsold too."""
    rows = ", ".join(
        f"{{tenant: {tenant}, host: n1, gpus: 2, contract: {contract}, allocation_id: {tenant}, {ALL_DAY}}}"
        for tenant, contract in (("acme", "on_demand"), ("globex", "reserved"), ("initech", "per_token"))
    )
    uses = [
        usage(24, 0.5, f"{tenant}-{i}", tenant, phase="decode", allocation_id=tenant, sums={"tokens": 30e6})
        for tenant in ("acme", "globex", "initech")
        for i in range(2)
    ]
    found = money(books(tmp_path, inventory(rows)), uses)
    # 2 × 12 × (2.95 + 3.45), 48 × 1.80, 60 million tokens at 0.60.
    assert [row.revenue for row in sorted(found.tenants, key=lambda row: row.tenant or "")] == [153.6, 86.4, 36.0]
    assert found.revenue == 276.0
    bearers = {(row.contract, row.stage): row.borne_by for row in found.incidence}
    assert bearers["on_demand", "kernel_gap"] == "tenant"
    assert bearers["reserved", "kernel_gap"] == "tenant until renewal"
    assert bearers["per_token", "kernel_gap"] == bearers[None, "unsold"] == "provider"
    billed = {(row.contract, row.stage): row.billed for row in found.incidence}
    assert [billed[contract, "kernel_gap"] for contract in ("on_demand", "reserved")] == pytest.approx([76.8, 43.2])
    assert billed["per_token", "kernel_gap"] is billed[None, "unsold"] is None
    assert sum(round(row.cost * 100) for row in found.incidence) == round(found.cost * 100)
    # Every level's costs add up: types and nodes to all, tenants to all but what nobody holds.
    assert sum(row.cost for row in found.gpu_types) == found.cost == sum(row.cost for row in found.nodes)
    assert sum(row.cost for row in found.tenants) == pytest.approx(found.cost - 48 * 2.10)
    # 144 held hours at 2.10 over 180 million tokens.
    assert found.cost_per_million_tokens == pytest.approx(144 * 2.10 / 180)
    assert found.cost_per_million_training_tokens is None


def test_missing_price(tmp_path: Path) -> None:
    """Revenue that lacks a price is unknown, never less, and a sentence says which row is missing."""
    held = books(tmp_path, inventory(f"{{tenant: acme, host: n1, gpus: 8, contract: per_token, {ALL_DAY}}}"))
    found = money(held, [usage(24, 0.3, "GPU-0", sums={"tokens": 1e6})])
    assert found.revenue is found.margin is found.revenue_per_gpu_hour is found.margin_per_useful_pflop_hour is None
    assert any("no price for acme, per_token" in note for note in found.notes)
    assert found.cost == 403.20


@pytest.mark.parametrize(
    ("inventory_given", "prices", "sentence"),
    [
        (False, None, "Name both, --prices FILE (prices and costs) and --inventory FILE"),
        (False, PRICES, "the inventory is not given; name it with --inventory FILE"),
        (True, None, "the price and cost books are not given; name them with --prices FILE"),
        (True, "currency: USD\ncosts: [{gpu_type: X, per_gpu_hour: 1}]", f"`costs` has no row for {H100}"),
        (
            True,
            f'currency: USD\ncosts: [{{gpu_type: "{H100}", per_gpu_hour: 1, until: 2026-11-01T12:00:00Z}}]',
            "over all of this time; add one, or correct its dates",
        ),
    ],
    ids=["neither", "no inventory", "no prices", "another type", "half of the time"],
)
def test_no_money_without_books(tmp_path: Path, inventory_given: bool, prices: str | None, sentence: str) -> None:
    """Without a book there is no money and a sentence that says which; with an inventory there are hours."""
    held = books(tmp_path, inventory(""), prices)
    held = held if inventory_given else replace(held, inventory=None)
    found = assessed(held, [])
    assert found.economics is None
    assert sentence in (found.missing or "")
    assert bool(found.hours) is (found.capacity is not None) is inventory_given
    assert all(stage.cost is None for stage in found.hours)


def test_intervals(tmp_path: Path) -> None:
    """What hangs on the expected MFU is an interval where that is one: the less is expected, the less is missing."""
    rows = (replace(used(mfu=0.3), expected_mfu=0.6, expected_low=0.5, expected_high=0.75),)
    fixed = ledger((node(),), (held(),))
    found = worth(fixed, economics.waterfall(fixed, rows))
    assert found is not None
    # Delivered hours 7.2 / e at 3 an hour: 28.8, 36, 43.2 of the 72 that were billed.
    assert (found.delivered.low, found.delivered.mid, found.delivered.high) == pytest.approx((28.8, 36.0, 43.2))
    assert (found.gap.low, found.gap.mid, found.gap.high) == pytest.approx((28.8, 36.0, 43.2))
    without = worth(fixed, economics.waterfall(fixed, [replace(rows[0], expected_low=None, expected_high=None)]))
    assert without is not None
    assert (without.gap.low, without.gap.high) == (None, None)
    assert without.gap.mid == pytest.approx(36.0)


def test_stage_intervals() -> None:
    """Two stages are intervals where the expectation is one: what one has more, the other has less, to the cent.

    24 h at an MFU of 0.3, expected 0.6 (0.5 to 0.75): useful 7.2; out of reach 7.2 × (1 / e − 1) = 2.4, 4.8 and 7.2,
    and the gap what is left of 16.8: 14.4, 12 and 9.6. An hour costs 2.
    """
    row = replace(used(mfu=0.3), expected_mfu=0.6, expected_low=0.5, expected_high=0.75)
    exact = replace(used(mfu=0.3, held=1, device="GPU-1"), expected_mfu=0.6)
    fixed = ledger((node(), node("n2")), (held(), held("n2")))
    found = {stage.stage: stage for stage in economics.stages(economics.waterfall(fixed, [row]))}
    reach, gap = found["unattainable"], found["kernel_gap"]
    assert (reach.gpu_hours_low, reach.gpu_hours, reach.gpu_hours_high) == pytest.approx((2.4, 4.8, 7.2))
    assert (gap.gpu_hours_low, gap.gpu_hours, gap.gpu_hours_high) == pytest.approx((9.6, 12.0, 14.4))
    assert (reach.cost_low, reach.cost, reach.cost_high) == (4.8, 9.6, 14.4)
    assert (gap.cost_low, gap.cost, gap.cost_high) == (19.2, 24.0, 28.8)
    assert {s.stage for s in found.values() if s.gpu_hours_low is not None} == {"unattainable", "kernel_gap"}
    # One without an interval is taken at what it is in every end.
    both = {stage.stage: stage for stage in economics.stages(economics.waterfall(fixed, [row, exact]))}["unattainable"]
    assert (both.gpu_hours_low, both.gpu_hours, both.gpu_hours_high) == pytest.approx((7.2, 9.6, 12.0))
    alone = {stage.stage: stage for stage in economics.stages(economics.waterfall(fixed, [exact]))}["unattainable"]
    assert (alone.gpu_hours_low, alone.cost_high) == (None, None)


@given(
    st.floats(0.01, 0.99), st.floats(0.02, 0.99), st.floats(0.5, 1.0), st.floats(1.0, 2.0), st.floats(0.0, 0.5),
)  # fmt: skip
@settings(max_examples=50)
def test_interval_ends_are_other_expectations(mfu: float, mid: float, low: float, high: float, wait: float) -> None:
    """What a stage is at an end is what it is where that end is expected, whatever else took its part."""
    row = replace(
        used(mfu=mfu, data_s=wait * 86_400), expected_mfu=mid, expected_low=low * mid, expected_high=high * mid
    )
    least, most = split(row, DAY).unattainable_ns
    assert least <= split(row, DAY).gpu_ns["unattainable"] <= most
    for end, ns in ((row.expected_high, least), (row.expected_low, most)):
        assert split(replace(row, expected_mfu=end, expected_low=None, expected_high=None), DAY).gpu_ns[
            "unattainable"
        ] == pytest.approx(ns, abs=1)


def test_work_done_again(tmp_path: Path) -> None:
    """A quarter of 24 h was done again: 6 h are lost, three quarters of the tokens count, and half the row's weight."""
    both = ", ".join(f"{{tenant: acme, host: n1, gpus: 1, contract: on_demand, {ALL_DAY}}}" for _ in range(2))
    one = usage(24, 0.4, "GPU-0", sums={"tokens": 4e6})
    again = Redone({one.identity: Lost(6 * 3600.0, 1e6)}, untold_runs=2)
    found = assessed(books(tmp_path, inventory(both, gpus=2)), [one], done_again=again)
    assert found.economics is not None
    stages = {stage.stage: stage.gpu_hours for stage in found.economics.waterfall if stage.gpu_hours}
    # 18 h at 0.4 are useful for 7.2; nobody held GPU-0 by name, so that its hours are spread over two allocations.
    assert stages == pytest.approx({"unobserved": 24, "lost_work": 6, "useful": 7.2, "kernel_gap": 10.8})
    assert found.economics.tenants[0].tokens == pytest.approx(3e6)
    assert any(note.startswith("2 runs began at step 0 again") for note in found.economics.notes)
    assert found.waterfall is not None
    assert [one.used.tokens_good for one in found.waterfall.splits] == [1.5e6, 1.5e6]


def test_words_of_others(tmp_path: Path) -> None:
    """What exporters bear out is witnessed, what cannot be is contradicted and said; the records go before the former.

    b's steps lie outside of its allocation's time for two of its hours, c's device had more steps than a day has, and
    d's peak is 1.1 times the fastest that an H100 has (fp8).
    """
    allocations = ", ".join(
        f"{{tenant: {tenant}, host: n1, gpus: {gpus}, contract: on_demand, {ALL_DAY}}}"
        for tenant, gpus in (("acme", 2), ("b", 1), ("c", 2), ("d", 1))
    )
    fp8 = 2 * 989_429_760_000_000.0 * 1.1 * 86_400
    uses = [
        usage(24, 0.5, "GPU-0"), usage(24, 0.5, "GPU-1"), usage(24, 0.5, "GPU-2", "b"),
        usage(25, 0.5, "GPU-3", "c"), usage(10, 0.5, "GPU-4", "c"),
        usage(24, 0.5, "GPU-5", "d", sums={"available_flops": fp8}),
    ]  # fmt: skip
    said = {uses[0].identity: "witnessed", uses[1].identity: "contradicted", uses[2].identity: "witnessed"}
    found = assessed(
        books(tmp_path, inventory(allocations)), uses, testimony=said, outside_s={("b", "n1", "GPU-2"): 7200.0}
    )
    assert found.waterfall is not None
    assert {one.used.device: one.used.trust for one in found.waterfall.splits} == {
        "GPU-0": "witnessed", "GPU-1": "contradicted", "GPU-2": "claimed", "GPU-3": "claimed", "GPU-4": "consistent",
        "GPU-5": "claimed",
    }  # fmt: skip
    assert found.economics is not None
    assert found.economics.trust == pytest.approx(
        {"witnessed": 24.0, "consistent": 10.0, "claimed": 73.0, "contradicted": 24.0}
    )
    notes = " ".join(found.economics.notes)
    assert "2.0 GPU-hours of steps of b lie outside of the time that it held their hosts" in notes
    assert "24.0 GPU-hours of steps of acme cannot be as they are told" in notes


@pytest.mark.parametrize(("trust", "advises"), [("witnessed", True), ("contradicted", False)])
def test_witnessed_rows_advise(trust: str, advises: bool) -> None:
    """Prices are set by what is witnessed, and not by what cannot be right."""
    books, uses = _priced([("good", 0.48, 3.0)], trust=trust)
    assert bool(economics.tiers(books, economics.waterfall(books, uses))) is advises


def test_revenue_by_token_needs_tokens() -> None:
    """A tenant that pays by the token and sent none brings an unknown amount; one without an allocation none."""
    by_token = held(contract="per_token", bill=None, per_million_tokens=Fraction("0.6"))
    assert revenue_of(by_token, []) is None
    assert revenue_of(by_token, [used(tokens_good=5e6), used()]) == 3
    assert revenue_of(held(contract=None, bill=None), []) == 0


# --- which allocation a row is under -------------------------------------------------------------------------------


def test_rows_join_by_uuid_then_node(tmp_path: Path) -> None:
    """A device is under the allocation that names it, else its tenant's on the node; never under another tenant's."""
    rows = (
        f"{{tenant: acme, host: n1, gpus: 1, gpu_uuids: [GPU-a], allocation_id: one, contract: on_demand, {ALL_DAY}}},"
        f"{{tenant: acme, host: n1, gpus: 1, allocation_id: two, contract: reserved, {ALL_DAY}}},"
        f"{{tenant: globex, host: n1, gpus: 1, gpu_uuids: [GPU-c], allocation_id: 3rd, contract: on_demand, {ALL_DAY}}}"
    )
    uses = [
        usage(12, 0.3, "GPU-a", host="a name of its own"),
        usage(12, 0.3, "GPU-b", allocation_id="two"),
        usage(6, 0.3, "GPU-c"),
    ]
    held = books(tmp_path, inventory(rows))
    found = assessed(held, uses)
    assert found.waterfall is not None
    assert found.ledger is not None
    shares = {
        (found.ledger.held[one.used.held].allocation_id, one.used.device, one.step_ns / HOUR_NS)
        for one in found.waterfall.splits
    }
    # The record of GPU-a goes before the host that its run tells. acme's GPU-c is globex's by the records, and so none
    # of those that allocation "one" names.
    assert shares == {("one", "GPU-a", 12.0), ("two", "GPU-b", 12.0), ("two", "GPU-c", 6.0)}


def test_contested_rows(tmp_path: Path) -> None:
    """Steps that are mostly on another's GPU are in no figure; other contested ones stay, and are contradicted.

    Of acme's 14 hours 2 are GPU-c's; GPU-b was another's for an hour of its 12.
    """
    rows = (
        f"{{tenant: acme, host: n1, gpus: 2, gpu_uuids: [GPU-a, GPU-b], contract: on_demand, {ALL_DAY}}},"
        f"{{tenant: globex, host: n1, gpus: 1, gpu_uuids: [GPU-c], contract: on_demand, {ALL_DAY}}}"
    )
    uses = [usage(12, 0.5, "GPU-a"), usage(12, 0.5, "GPU-b"), usage(2, 0.9, "GPU-c"), usage(24, 0.4, "GPU-c", "globex")]
    contests = (
        Contested("acme", "n1", "GPU-b", "held_by_another", 1.0, 12.0, ("initech",)),
        Contested("acme", "n1", "GPU-c", "held_by_another", 2.0, 2.0, ("globex",)),
    )
    found = assessed(books(tmp_path, inventory(rows, gpus=4)), uses, contests=contests)
    assert found.waterfall is not None
    assert {(one.used.tenant, one.used.device, one.used.trust) for one in found.waterfall.splits} == {
        ("acme", "GPU-a", "consistent"), ("acme", "GPU-b", "contradicted"), ("globex", "GPU-c", "consistent"),
    }  # fmt: skip
    assert [found.trust[use.identity] for use in uses] == ["consistent", "contradicted", "contradicted", "consistent"]
    assert found.economics is not None
    assert found.economics.trust == {"witnessed": 0, "consistent": 36, "claimed": 0, "contradicted": 14}
    assert found.economics.useful_pflop_hours == pytest.approx((24 * 0.5 + 24 * 0.4) * 0.98942976)
    note = "3.0 hours of steps of acme are told of GPUs that globex, initech held then by your records; rows that are"
    assert any(each.startswith(note) for each in found.economics.notes)
    assert not any("accounting" in each for each in found.economics.notes)


def test_misspelt_tenants(tmp_path: Path) -> None:
    """A price of a tenant that no allocation names is said: who is meant pays another price."""
    row = f"{{tenant: acme, host: n1, gpus: 1, contract: on_demand, {ALL_DAY}}}"
    priced = PRICES.replace("tenant: initech", "tenant: acne")
    found = money(books(tmp_path, inventory(row), priced), [usage(24, 0.3, "GPU-0")])
    assert found.notes[0] == (
        "`prices` has rows for acne, and no allocation names them: check how they are spelt in both."
    )


def test_strays(tmp_path: Path) -> None:
    """Steps on what the inventory does not own are in no figure, and a note names them."""
    found = money(books(tmp_path, inventory("")), [usage(12, 0.3, "GPU-z", host="laptop")])
    assert found.useful_pflop_hours == 0
    assert found.notes[0].startswith(
        "Steps on 1 hosts that the inventory does not own are in no figure of money (laptop)"
    )


def test_uncovered_steps(tmp_path: Path) -> None:
    """Steps that no allocation covers take their hours from the unsold ones, bring nothing, and are said."""
    found = assessed(books(tmp_path, inventory("", gpus=2)), [usage(12, 0.5, "GPU-0", "stranger")])
    assert found.economics is not None
    stages = {stage.stage: stage.gpu_hours for stage in found.economics.waterfall if stage.gpu_hours}
    assert stages == pytest.approx({"unsold": 36, "kernel_gap": 6, "useful": 6})
    assert found.economics.revenue == 0
    assert "12.0 GPU-hours of steps of stranger are covered by no allocation" in found.economics.notes[0]
    assert found.waterfall is not None
    assert {one.used.trust for one in found.waterfall.splits} == {"claimed"}


def test_trust(tmp_path: Path) -> None:
    """Rows are consistent where they are allocated, fit into their time, and claim no more than the peak."""
    allocations = ", ".join(
        f"{{tenant: {tenant}, host: n1, gpus: 1, contract: on_demand, {ALL_DAY}}}" for tenant in ("acme", "b", "c")
    )
    uses = [usage(24, 0.5, "GPU-0"), usage(24, 1.5, "GPU-1", "b"), usage(25, 0.5, "GPU-2", "c")]
    found = assessed(books(tmp_path, inventory(allocations)), uses)
    assert found.waterfall is not None
    assert {one.used.tenant: one.used.trust for one in found.waterfall.splits} == {
        "acme": "consistent",
        "b": "claimed",
        "c": "claimed",
    }


def test_faster_peak(tmp_path: Path) -> None:
    """A run in fp8 is split at its own peak, twice the reference, and its useful PFLOP-hours are what they are."""
    peak = 2 * 989_429_760_000_000.0
    sums = {"available_flops": peak * 86_400, "model_flops": 0.6 * peak * 86_400, "device_s": 86_400.0}
    sums |= {"expected_flops": 0.8 * peak * 86_400, "expected_available_flops": peak * 86_400}
    held = books(tmp_path, inventory(f"{{tenant: acme, host: n1, gpus: 1, contract: on_demand, {ALL_DAY}}}", gpus=1))
    found = assessed(held, [usage(24, 1.2, "GPU-0", sums=sums)])
    assert found.economics is not None
    stages = {stage.stage: stage.gpu_hours for stage in found.economics.waterfall if stage.gpu_hours}
    assert stages == pytest.approx({"useful": 14.4, "unattainable": 3.6, "kernel_gap": 6.0})
    assert found.economics.useful_pflop_hours == pytest.approx(0.6 * 2 * 0.98942976 * 24)
    assert found.capacity is not None
    assert found.capacity.owned_mfu == pytest.approx(1.2)


# --- planning, pricing, advice -------------------------------------------------------------------------------------


def test_gpus_avoided() -> None:
    """A point on 0.30 over 600 GPUs is the work of 20; as many need not be bought as are wanted."""
    assert plan(H100, 600, 0.30, 50, 30_000).gpus_avoided == pytest.approx(20)
    assert plan(H100, 600, 0.30, 50, 30_000).capex_avoided == pytest.approx(600_000)
    assert plan(H100, 600, 0.30, 5, 30_000).gpus_avoided == 5
    assert plan(H100, 600, 0.30, None, 30_000).gpus_avoided is None
    assert plan(H100, 600, None, 50, 30_000).gpus_per_point is None


def test_demand(tmp_path: Path) -> None:
    """Demand is what waits, a slice by its share, and the growth of the work over the range before."""
    queue = (
        "queue: [{profile: 3g.40gb, waiting: 7, at: 2026-11-01},"
        " {profile: 3g.40gb, waiting: 0, at: 2026-11-01T06:00:00Z},"
        f' {{profile: "{H100}", waiting: 2, at: 2026-11-01}}, {{profile: "{H100}", waiting: 90, at: 2026-12-01}}]'
    )
    text = inventory(f"{{tenant: acme, host: n1, gpus: 4, contract: on_demand, {ALL_DAY}}}") + queue
    held, uses = books(tmp_path, text), [usage(24, 0.4, f"GPU-{i}") for i in range(4)]
    (found,) = money(held, uses, growth=0.25).plans
    # 3.5 × 3/7 + 2, and a quarter of the 4 that are held.
    assert found.demand_gpus == pytest.approx(1.5 + 2 + 1)
    assert found.gpus_avoided == pytest.approx(4 * 0.01 / 0.4)
    assert found.capex_avoided == pytest.approx(3000)
    (shrunk,) = money(held, uses, growth=-0.5).plans
    assert shrunk.demand_gpus == pytest.approx(3.5)


def test_new_hardware() -> None:
    """Two intents, priced as the newer type's work would have cost on the older: 4·2 + 1·1 = 9 against 6."""
    found = new_hardware(
        [
            Pair("a", Side(H100, 10, 20.0, 10 * PFLOP_HOUR), Side(H200, 2, 5.0, 4 * PFLOP_HOUR)),
            Pair("b", Side(H100, 10, 10.0, 10 * PFLOP_HOUR), Side(H200, 2, 1.0, 1 * PFLOP_HOUR)),
            Pair("none", Side(H100, 10, 10.0, 0.0), Side(H200, 2, 1.0, 1 * PFLOP_HOUR)),
        ]
    )
    (row,) = found
    assert (row.before, row.after, row.intents) == (H100, H200, 2)
    assert row.saved == pytest.approx(3.0)
    assert row.cost_per_useful_pflop_hour_before == pytest.approx(9 / 5)
    assert row.cost_per_useful_pflop_hour_after == pytest.approx(6 / 5)


def test_only_trusted_rows_compare_hardware() -> None:
    """A word alone, or one that cannot be, is no ground for a purchase; prefill is held against prefill."""
    both = ledger((), (held(), held(gpu_type=H200)))
    old, new = used(phase="prefill", intent="i"), used(held=1, gpu_type=H200, phase="prefill", intent="i")

    def found(*rows: Used) -> list[tuple[str, str]]:
        splits = [split(row, round(row.device_s * 10**9)) for row in rows]
        return [(each.before.gpu_type, each.after.gpu_type) for each in pairs(both, splits, {H100: 0, H200: 1})]

    trusted = [replace(old, trust="consistent"), replace(new, trust="witnessed")]
    assert found(*trusted) == [(H100, H200)]
    assert found(trusted[0], new) == found(trusted[0], replace(new, trust="contradicted")) == []
    assert found(trusted[0], replace(trusted[1], phase="decode")) == []


def _priced(rows: list[tuple[str, float, float]], trust: str = "consistent") -> tuple[Ledger, list[Used]]:
    """A tenant a row: (name, MFU of an expected 0.5, price an hour)."""
    owned = tuple(node(f"n{i}") for i in range(len(rows)))
    bills = tuple(held(f"n{i}", tenant=name, bill=24 * Fraction(str(p))) for i, (name, _, p) in enumerate(rows))
    uses = [used(mfu=mfu, held=i, tenant=n, expected_mfu=0.5, trust=trust) for i, (n, mfu, _) in enumerate(rows)]
    return ledger(owned, bills), uses


def test_tiers_keep_revenue() -> None:
    """Priced by delivered hours, the good pay less by the hour and the poor more... of the same revenue.

    Attained 0.96 and 0.48 at 3 an hour: 6 / 1.44 = 4.1667 a delivered hour, so 4.00 and 2.00 an hour held.
    """
    books, uses = _priced([("good", 0.48, 3.0), ("poor", 0.24, 3.0)])
    found = economics.tiers(books, economics.waterfall(books, uses))
    assert [(tier.attained, tier.tenants) for tier in found] == [
        ("at least 90 %", ("good",)),
        ("below 50 %", ("poor",)),
    ]
    assert [tier.neutral_price_per_gpu_hour for tier in found] == pytest.approx([4.0, 2.0])
    assert [tier.change for tier in found] == pytest.approx([1 / 3, -1 / 3])
    paid = sum(tier.price_per_gpu_hour * tier.gpu_hours for tier in found)
    assert sum(tier.neutral_price_per_gpu_hour * tier.gpu_hours for tier in found) == pytest.approx(paid)


def test_only_trusted_rows_advise() -> None:
    """A row that is only claimed sets no price and calls nobody."""
    books, uses = _priced([("good", 0.48, 3.0)], trust="claimed")
    found = economics.waterfall(books, [replace(uses[0], claims=(0,))])
    assert economics.tiers(books, found) == ()
    claim = Claim("good", "w", H100, "input_bound", 0.2, 0.9, "Raise num_workers.")
    assert economics.calls(books, found, [claim], "USD") == ()


def test_calls() -> None:
    """Whom to call is sorted by money and says it in the finding's words, with what it cost whom."""
    books, uses = _priced([("acme", 0.3, 3.0), ("globex", 0.3, 4.0)])
    by_token = replace(books.held[1], contract="per_token", bill=None)
    books = replace(books, held=(books.held[0], by_token))
    claims = [
        Claim("globex", "w", H100, "under_batched_inference", 0.5, 0.8, "Raise the batch to 32."),
        Claim("acme", "w", H100, "input_bound", 0.2, 0.9, "Raise num_workers."),
        Claim("acme", "other", H100, "input_bound", 0.9, 0.9, "Nobody's."),
        Claim("acme", "w", H100, "accounting", 0.9, 0.9, "Check the formulas."),
        Claim("acme", "w", H100, "unknown", 0.9, 0.0, "Take a profile."),
    ]
    uses = [replace(uses[0], claims=(1, 3, 4)), replace(uses[1], claims=(0,))]
    found = economics.calls(books, economics.waterfall(books, uses), claims, "USD")
    assert [(call.tenant, call.borne_by) for call in found] == [("globex", "provider"), ("acme", "tenant")]
    assert [call.money for call in found] == pytest.approx([24.0, 14.4])
    assert found[1].sentence == "w: Raise num_workers. You paid USD 14 for it in this time (5 GPU-hours)."


def test_findings(tmp_path: Path) -> None:
    """A finding is of its run's configuration in its phase: other rows of that name lose nothing by it."""
    held = books(tmp_path, inventory(f"{{tenant: acme, host: n1, gpus: 1, contract: on_demand, {ALL_DAY}}}", gpus=1))
    finding = {
        "tenant": "acme",
        "workload": "w",
        "gpu_type": H100,
        "cause": "under_batched_inference",
        "loss_share": 0.4,
        "confidence": 0.9,
        "remedy": "Raise the batch.",
        "world_size": 8,
        "phase": "decode",
        "run_id": "r",
    }
    uses = [
        usage(12, 0.3, "GPU-0", phase="decode", fingerprint="slow"),
        usage(6, 0.3, "GPU-0", phase="decode", fingerprint="fast", run_ids=("s",)),
        usage(6, 0.3, "GPU-0", phase="prefill", fingerprint="slow"),
    ]
    found = money(held, uses, findings=[finding])
    stages = {stage.stage: stage.gpu_hours for stage in found.waterfall}
    assert stages["under_batch"] == pytest.approx(0.4 * 12)
    (call,) = found.calls
    assert call.gpu_hours == pytest.approx(0.4 * 12)
    assert call.sentence.startswith("w: Raise the batch. You paid USD ")


# --- FOCUS ---------------------------------------------------------------------------------------------------------


def test_focus(tmp_path: Path) -> None:
    """Rows of FOCUS bill what the contracts say, and the provider's cost in them is that of all owned hours."""
    rows = ", ".join(
        f"{{tenant: {t}, workload: w-{t}, host: n1, gpus: 2, contract: {c}, allocation_id: {t}, {ALL_DAY}}}"
        for t, c in (("acme", "on_demand"), ("globex", "reserved"), ("initech", "per_token"))
    )
    uses = [usage(24, 0.5, f"initech-{i}", "initech", sums={"tokens": 30e6}) for i in range(2)]
    found = assessed(books(tmp_path, inventory(rows)), uses)
    assert found.ledger is not None
    assert found.waterfall is not None
    text = economics.focus_csv(found.ledger, found.waterfall, "USD", "Cloud Ltd", {"n1": "eu-1"})
    lines = list(csv.DictReader(io.StringIO(text)))
    by_tenant = {line["BillingAccountId"]: line for line in lines}
    assert {name: line["BilledCost"] for name, line in by_tenant.items()} == {
        "": "0.00",
        "acme": "153.60",
        "globex": "86.40",
        "initech": "36.00",
    }
    assert sum(Decimal(line["x_ProviderCost"]) for line in lines) == Decimal("403.20")
    initech = by_tenant["initech"]
    assert (initech["ConsumedQuantity"], initech["ConsumedUnit"]) == ("60000000", "Tokens")
    assert (initech["PricingQuantity"], initech["ContractedUnitPrice"]) == ("60", "0.6")
    globex = by_tenant["globex"]
    assert (globex["ListCost"], globex["PricingCategory"]) == ("153.60", "Committed")
    assert (globex["CommitmentDiscountStatus"], globex["x_CommitmentGpuHours"]) == ("Used", "8760")
    assert (globex["ChargePeriodStart"], globex["BillingPeriodEnd"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
    assert (by_tenant[""]["ConsumedQuantity"], by_tenant[""]["x_UnsoldGpuHours"]) == ("48", "48")
    assert {line["RegionId"] for line in lines} == {"eu-1"}
    # What FOCUS 1.2 wants in every row of usage, apart from the invoice's parties, which the book may not name.
    for line in lines:
        assert all(line[name] for name in ("BillingCurrency", "ChargeCategory", "ServiceCategory", "ConsumedUnit"))


def test_holdings_are_shared(tmp_path: Path) -> None:
    """The ledger's hours are the holdings' own."""
    held = books(tmp_path, inventory(f"{{tenant: acme, host: n1, gpus: 3, contract: on_demand, {ALL_DAY}}}"))
    assert held.inventory is not None
    holdings, window = Holdings(held.inventory), (at("2026-10-31T12:00:00"), at("2026-11-01T12:00:00"))
    found = economics.ledger(holdings, held.costs, held.prices, *window)
    assert sum(row.gpu_ns for row in found.held) == holdings.allocated_hours(*window) * HOUR_NS == 36 * HOUR_NS
    assert sum(row.owned_ns for row in found.owned) == holdings.hours(*window).owned * HOUR_NS
