"""What tenants are told of one another, and whose a GPU is, by hand: over real OTLP and HTTP, from request to page."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk import semconv
from mfu_sdk.provider import report, rollup
from mfu_sdk.provider.books import Holdings, load_inventory
from mfu_sdk.provider.contested import at_once, contested
from mfu_sdk.provider.economics.inputs import Trust
from mfu_sdk.provider.rollup import Range, Sums, Usage
from mfu_sdk.provider.serve import Server
from mfu_sdk.provider.shared import Levels, Work, by_work, compared, last_week, level
from mfu_sdk.provider.store import Store

from .fed import Fed, resource, serving, span

FREE = ("127.0.0.1", 0)
H100 = "NVIDIA H100 80GB HBM3"
PEAK = 989_429_760_000_000.0
HOUR = 3600 * 10**9
DAY = 24 * HOUR
MONDAY = 1_793_577_600 * 10**9
"""2026-11-02T00:00:00Z."""
TUESDAY = MONDAY + DAY
NOW = MONDAY + 9 * DAY + 12 * HOUR
"""Wednesday of the week after."""
WEEK = "since=2026-11-02&until=2026-11-09"

TENANTS = {"acme": 0.20, "bolt": 0.30, "cube": 0.40, "dyne": 0.45}
"""What each reached with the same work."""
OTHERS = ("evil", "fox", "gale", "hush")
INVENTORY = f"""
nodes:
  - {{host: node-1, gpu_type: "{H100}", gpus: 8, gpu_uuids: [GPU-a, GPU-b, GPU-c, GPU-d, GPU-e, GPU-h, GPU-2, GPU-3],
     from: 2026-01-01}}
  - {{host: node-2, gpu_type: "{H100}", gpus: 2, from: 2026-01-01}}
allocations:
  - {{tenant: acme, host: node-1, gpus: 1, gpu_uuids: [GPU-a], contract: on_demand, from: 2026-11-01}}
  - {{tenant: bolt, host: node-1, gpus: 1, gpu_uuids: [GPU-b], contract: on_demand, from: 2026-11-01}}
  - {{tenant: cube, host: node-1, gpus: 1, gpu_uuids: [GPU-c], contract: on_demand, from: 2026-11-01}}
  - {{tenant: dyne, host: node-1, gpus: 1, gpu_uuids: [GPU-d], contract: on_demand, from: 2026-11-01}}
  - {{tenant: evil, host: node-1, gpus: 1, gpu_uuids: [GPU-e], contract: on_demand, from: 2026-11-01}}
  - {{tenant: fox, host: node-2, gpus: 1, contract: on_demand, from: 2026-11-01}}
  - {{tenant: gale, host: node-2, gpus: 1, contract: on_demand, from: 2026-11-01}}
"""
PRICES = f"""
currency: USD
prices: [{{gpu_type: "{H100}", contract: on_demand, per_gpu_hour: 3}}]
costs: [{{gpu_type: "{H100}", per_gpu_hour: 2}}]
"""


def steps(workload: str, device: str, mfu: float, intent: str, hour: float, hours: float = 1.0, **more: Any) -> Any:
    """A window of steps from `hour` of the Tuesday on, as OTLP JSON."""
    of = resource(workload, hw__id=device, mfu__config__intent=intent, **more)
    seconds = hours * 3600
    told = {
        semconv.PHASE: "train",
        semconv.MODEL_FLOP: mfu * PEAK * seconds,
        semconv.AVAILABLE_FLOP: PEAK * seconds,
        semconv.EXPECTED_FLOP: 0.5 * PEAK * seconds,
        semconv.EXPECTED_AVAILABLE_FLOP: PEAK * seconds,
        semconv.STEP_TIME: seconds,
        semconv.WINDOW_STEP_COUNT: 100,
        semconv.WINDOW_STEP_TIMED: 100,
        semconv.WINDOW_STEP_UNKNOWN: 0,
        semconv.PEAK_SOURCE: "calibrated",
        semconv.PEAK_DTYPE: "bfloat16",
    }
    return span(semconv.SPAN_WINDOW, of, TUESDAY + round(hour * HOUR), seconds, told, round(hour * 100))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the provider's files are."""
    return tmp_path_factory.mktemp("between")


@pytest.fixture(scope="module")
def fed(home: Path) -> Iterator[Fed]:
    """Four tenants at one work for two hours; evil tells of bolt's GPU, fox and gale of one, hush of nobody's."""
    tokens = ", ".join(f"{name}: [{{token: {name}-token}}]" for name in (*TENANTS, *OTHERS))
    (home / "tokens.yaml").write_text(f"tenants: {{{tokens}}}\noperators: {{ops: [{{token: o}}]}}\n")
    (home / "inventory.yaml").write_text(INVENTORY)
    (home / "prices.yaml").write_text(PRICES)
    server = Server(
        home / "data", http=FREE, web=FREE, tokens=home / "tokens.yaml", inventory=[home / "inventory.yaml"],
        prices=[home / "prices.yaml"], now_unix_ns=lambda: NOW,
    )  # fmt: skip
    for fed in serving(server):
        for tenant, mfu in TENANTS.items():
            device = f"GPU-{tenant[0]}"
            sent = [steps(f"gpt-{tenant}", device, mfu, "intent-1", hour) for hour in (1, 2)]
            if tenant != "dyne":
                sent.append(steps(f"gpt-{tenant}", device, mfu, "intent-2", 4))
            # An hour of each but dyne, who tried for half of one.
            sent.append(steps(f"gpt-{tenant}", device, mfu, "intent-3", 6, 0.5 if tenant == "dyne" else 1.0))
            fed.send(sent, f"{tenant}-token")
        fed.send([steps("mine", "GPU-b", 0.9, "intent-1", hour) for hour in (1, 2)], "evil-token")
        fed.send([steps("mine", "GPU-e", 0.1, "intent-4", 1)], "evil-token")
        for tenant in ("fox", "gale"):
            both = [steps("both", "GPU-x", 0.3, "intent-1", 3 + n / 12, 1 / 12, host__name="node-2") for n in range(12)]
            fed.send(both, f"{tenant}-token")
        fed.send([steps("quiet", "GPU-h", 0.5, "intent-1", hour) for hour in (8, 9)], "hush-token")
        yield fed


@pytest.fixture(scope="module")
def told(fed: Fed) -> dict[str, Any]:
    """The report on the week as JSON, as a tenant and an operator get it."""
    found = {}
    for name, token in (("acme", "acme-token"), ("ops", "o")):
        status, _, text = fed.get(f"/api/report?{WEEK}", token)
        assert status == 200, text
        assert report.to_json(report.from_json(text)) == text
        found[name] = json.loads(text)
    return found


def levels(rows: Any) -> dict[str, tuple[Any, Any]]:
    """A tenant's own MFU and its level by intent."""
    return {row["intent"]: (row["mfu"], row["fleet_mfu"]) for row in rows}


# --- yours against the fleet's ---------------------------------------------------------------------------------------


def test_three_others_make_a_level(told: dict[str, Any]) -> None:
    """Of the others' 0.30, 0.40 and 0.45 ∛0.054 = 0.378; nobody's own, and of evil nothing, is in what it is told.

    Of two others there is no level, nor of three of whom one tried for half an hour.
    """
    near = pytest.approx
    found = told["acme"]["against_fleet"]
    assert levels(found["rows"]) == {
        "intent-1": (near(0.20), 0.38), "intent-2": (near(0.20), None), "intent-3": (near(0.20), None),
    }  # fmt: skip
    assert (found["since"], found["until"]) == ("2026-11-02", "2026-11-09")
    assert found["rows"][0] == {
        "intent": "intent-1", "gpu_type": H100, "phase": "train", "workloads": ["gpt-acme"], "gpu_hours": near(2.0),
        "mfu": near(0.20), "expected_mfu": near(0.5), "fleet_mfu": 0.38, "ratio": near(0.20 / 0.38),
    }  # fmt: skip
    assert found["missing"] == [
        "2 of 3 configurations have no level of others: in the week fewer than three other tenants ran them for an hour"
        " with figures that the provider stands behind. They are held against what their own operators allow."
    ]
    assert told["ops"]["against_fleet"] is None


def test_pages_name_who_asks(fed: Fed, told: dict[str, Any]) -> None:
    """evil's pages say its level and its contested hours; neither they nor acme's JSON name any other tenant.

    evil is none of the four that it is held against: ∜(0.20 · 0.30 · 0.40 · 0.45) = ∜0.0108 = 0.322.
    """
    fleet, workload = (fed.get(f"{path}?{WEEK}", "evil-token")[2] for path in ("/", "/workload/evil/mine"))
    for page in (fleet, workload):
        assert "Yours against the fleet" in page
        assert "32.0 %" in page
        assert "at least three other tenants in the week from 2026-11-02 to 2026-11-09" in page
    assert "another tenant holds it, by the records" in fleet
    for reader, text in (("evil", fleet + workload), ("acme", json.dumps(told["acme"]))):
        assert not [name for name in (*TENANTS, *OTHERS) if name != reader and name in text]


def test_no_range_asks_for_another_level(fed: Fed, home: Path, told: dict[str, Any]) -> None:
    """Whatever range is asked for, the level is of the same rows, and what comes late changes none: no difference is
    somebody's hour."""
    store = fed.server._store
    of_week = Levels(store, lambda: Holdings(load_inventory([home / "inventory.yaml"])))
    mine = rollup.usages(store, Range(MONDAY, MONDAY + 7 * DAY), "acme")

    def asked(since: int, until: int, now: int = NOW) -> float | None:
        rows = of_week.against("acme", mine, Range(since, until), now).rows
        return {row.intent: row.fleet_mfu for row in rows}["intent-1"]

    assert asked(MONDAY, MONDAY + 7 * DAY) == 0.38
    fed.send([steps("gpt-dyne", "GPU-d", 0.9, "intent-1", 20)], "dyne-token")
    assert asked(TUESDAY, MONDAY + 7 * DAY + 1) == asked(TUESDAY + HOUR, NOW) == asked(0, NOW + 99 * DAY) == 0.38
    # A range that ends before the week does is held against the week before, and so is one that asks too soon.
    assert asked(MONDAY, MONDAY + 7 * DAY - 1) is asked(MONDAY, NOW, MONDAY + 8 * DAY - 1) is None
    # Reckoned anew it has the hour: ∛(0.30 · 0.40 · 0.60) = 0.416.
    anew = Levels(store, lambda: Holdings(load_inventory([home / "inventory.yaml"])))
    assert anew.against("acme", mine, Range(MONDAY, NOW), NOW).rows[0].fleet_mfu == 0.42


def test_weeks_are_whole_and_apart() -> None:
    """A week ends on the last Monday, midnight in UTC; before the first there is none."""
    assert last_week(MONDAY) == Range(MONDAY - 7 * DAY, MONDAY)
    assert last_week(MONDAY - 1) == Range(MONDAY - 14 * DAY, MONDAY - 7 * DAY)
    assert last_week(MONDAY + 7 * DAY - 1) == Range(MONDAY - 7 * DAY, MONDAY)
    assert datetime.fromtimestamp(MONDAY / 1e9, UTC).weekday() == 0
    assert last_week(10 * DAY) is None


mfus = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.001, 1.0), max_size=8)


@given(mfus, st.sampled_from("abcdefgh"), st.floats(0.001, 1.0))
def test_own_figure_does_not_matter(of: dict[str, float], asker: str, mfu: float) -> None:
    """Whatever the asker reached, and whether at all, it is told the same: it can take nothing of its own out."""
    others = {name: value for name, value in of.items() if name != asker}
    found = level(of, asker)
    assert found == level(others | {asker: mfu}, asker) == level(others, asker)
    assert (found is None) is (len(others) < 3)
    if found is not None:
        assert 0.99 * min(others.values()) * 0.95 <= found <= max(others.values()) * 1.06


def usage(tenant: str, mfu: float, hours: float, **more: Any) -> Usage:
    """A row of work `i` on an H100."""
    sums = Sums(device_s=hours * 3600, model_flops=mfu * PEAK * hours, available_flops=PEAK * hours)
    names: dict[str, Any] = {"workload": "w", "gpu_type": H100, "phase": "train", "intent": "i", **more}
    return Usage(
        tenant=tenant, family=None, world_size=1, host="n", device=f"GPU-{tenant}", run_ids=(), sums=sums, **names
    )


@pytest.mark.parametrize("hours", [1.0, 3.0, 5000.0])
def test_tenants_weigh_alike(hours: float) -> None:
    """A tenant of 5,000 hours counts as one of an hour does: the level is not nearly its own figure."""
    rows = [usage("a", 0.1, hours), usage("b", 0.2, 1.0), usage("c", 0.4, 1.0)]
    found = by_work(rows, {row.identity: "consistent" for row in rows})
    assert level(found[Work("i", H100, "train")], "d") == 0.2


@pytest.mark.parametrize("word", ["claimed", "contradicted", None])
def test_untrusted_rows_make_no_level(word: Any) -> None:
    """Rows that nobody stands behind, or that cannot be, are in no level; neither are those of no known work."""
    rows = [usage(tenant, 0.2, 2.0) for tenant in "abc"]
    words: dict[tuple[object, ...], Trust] = {}
    for row, said in zip(rows, ("witnessed", "consistent", word), strict=True):
        if said is not None:
            words[row.identity] = said
    assert level(by_work(rows, words)[Work("i", H100, "train")], "d") is None
    assert by_work([usage("a", 0.2, 2.0, intent=None)], {}) == {}
    nameless = compared("a", [usage("a", 0.2, 2.0, intent=None)], {}, None)
    assert nameless.missing == (
        "Work that names no configuration (mfu.config.intent) or no GPU type is held against nobody's.",
    )


# --- whose a GPU is ----------------------------------------------------------------------------------------------


def test_contested_is_counted(told: dict[str, Any]) -> None:
    """evil's two hours on bolt's GPU, an hour of fox's and gale's each on one, and hush's two on nobody's."""
    found = told["ops"]
    rows = {row["tenant"]: row for row in found["contested"]}
    hours = pytest.approx
    assert rows["evil"] == {
        "tenant": "evil", "host": "node-1", "device": "GPU-b", "why": "held_by_another", "hours": hours(2.0, abs=0.04),
        "of_hours": hours(2.0), "others": ["bolt"],
    }  # fmt: skip
    assert rows["hush"]["why"] == "not_held"
    assert (rows["fox"]["why"], rows["fox"]["hours"], rows["fox"]["others"]) == ("claimed_twice", hours(1.0), ["gale"])
    assert (rows["gale"]["device"], rows["gale"]["host"], rows["gale"]["others"]) == ("GPU-x", "node-2", ["fox"])
    assert set(rows) == set(OTHERS)
    # evil 2, fox and gale 1 each, hush 2; the rest of what was sent fits its records.
    trust = found["economics"]["trust"]
    assert trust["contradicted"] == hours(6.0)
    assert trust["claimed"] == trust["witnessed"] == 0
    assert trust["consistent"] == hours(sum(row["gpu_hours"] for row in found["workloads"]) - 6.0)
    notes = " ".join(found["economics"]["notes"])
    assert "hours of steps of evil are told of GPUs that bolt held then by your records" in notes
    assert "2.0 hours of steps of fox" not in notes
    assert "1.0 hours of steps of fox are told of GPUs of which gale told at the same time" in notes


def test_contested_is_in_no_money(told: dict[str, Any]) -> None:
    """bolt's hours stay bolt's: evil is billed for what it holds, and its FLOPs on bolt's GPU are in no figure."""
    money = told["ops"]["economics"]
    useful = {row["tenant"]: row["useful_pflop_hours"] for row in money["tenants"]}
    assert useful["evil"] == pytest.approx(0.1 * PEAK / 1e15)
    assert useful["bolt"] == pytest.approx(4 * 0.3 * PEAK / 1e15)
    assert sum(stage["gpu_hours"] for stage in money["waterfall"]) == pytest.approx(10 * 7 * 24)


def test_contested_on_the_page(fed: Fed, told: dict[str, Any]) -> None:
    """The operator sees who is meant; acme, who is right, is told nothing."""
    page = fed.get(f"/money?{WEEK}", "o")[2]
    assert "Contested GPUs" in page
    assert "another tenant holds it, by the records" in page
    assert "another tenant tells of it at the same time" in page
    assert told["acme"]["contested"] == []


def test_contested_measures_no_hardware(told: dict[str, Any]) -> None:
    """A contested workload is in no comparison of GPU types, and a fleet is told how many there are."""
    said = "4 workloads' figures cannot be as they are told (accounting, contested GPUs): in no comparison"
    assert said in told["ops"]["questions"]["by_gpu_type"]["missing"]
    assert said in told["ops"]["questions"]["new_hardware"]["missing"]
    assert not any("contested" in line for line in told["acme"]["questions"]["by_gpu_type"]["missing"])


def test_names_of_hosts_are_no_uuids() -> None:
    """Hosts of two tenants may have one name: a device without a UUID is contested by nobody, and not asked for."""
    rows = [replace(usage(tenant, 0.2, 2.0), device="worker-0/0") for tenant in "ab"]
    assert contested(cast(Store, None), Range(MONDAY, NOW), None, rows) == ()


@pytest.mark.parametrize(
    ("stretches", "seconds"),
    [
        # A change of hands with clocks apart: two stretches in which both tell.
        ({0: "a", 300: "ab", 600: "ab", 900: "b"}, {}),
        ({0: "ab", 300: "ab", 600: "ab", 900: "b"}, {"a": 300.0, "b": 300.0}),
        # Two changes of hands are no three stretches in a row.
        ({0: "ab", 300: "ab", 1200: "ab", 1500: "ab"}, {}),
        ({0: "abc", 300: "ab", 600: "bc", 900: "abc"}, {"a": 300.0, "b": 400.0, "c": 300.0}),
        ({}, {}),
    ],
    ids=["change", "at once", "two changes", "three tenants", "nothing"],
)
def test_at_once(stretches: dict[int, str], seconds: dict[str, float]) -> None:
    """Three stretches of five minutes in a row in which two tenants tell of a device are no change of hands."""
    told = {start: dict.fromkeys(tenants, 100.0) for start, tenants in stretches.items()}
    found = at_once(told)
    assert {tenant: of for tenant, (of, _) in found.items()} == seconds
    assert all(tenant not in others for tenant, (_, others) in found.items())
