"""Grafana's dashboards: the files are what their sources say, every query answers on a store with what is by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mfu_sdk.provider.store import PointRow, Row, Store, timestamp

from .conftest import MINUTE, T0, Make

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "examples" / "provider" / "grafana"
Panels = dict[str, Any]


def panels(name: str) -> Panels:
    """A committed dashboard's panels by their titles."""
    return {panel["title"]: panel for panel in json.loads((GRAFANA / f"{name}.json").read_text("utf-8"))["panels"]}


CLICKHOUSE = panels("clickhouse")
SINCE_S, UNTIL_S = T0 // 10**9, T0 // 10**9 + 3600


def expanded(sql: str, tenants: list[str], interval_s: int = 300) -> str:
    """What the plugin sends for `sql`.

    Macros: github.com/grafana/clickhouse-datasource, pkg/macros/macros.go. Variables:
    grafana.com/docs/grafana/latest/dashboards/variables (`__from` is in milliseconds, `sqlstring` quotes each value).
    """
    since, until = f"toDateTime({SINCE_S})", f"toDateTime({UNTIL_S})"
    sql = re.sub(r"\$__timeFilter\(([^)]+)\)", rf"\1 >= {since} AND \1 <= {until}", sql)
    sql = re.sub(
        r"\$__timeInterval\(([^)]+)\)", rf"toStartOfInterval(toDateTime(\1), INTERVAL {interval_s} second)", sql
    )
    sql = sql.replace("$__fromTime", since).replace("$__toTime", until)
    sql = sql.replace("${__from}", f"{SINCE_S}000").replace("${__to}", f"{UNTIL_S}000")
    sql = sql.replace("${tenant:sqlstring}", ",".join(f"'{tenant}'" for tenant in tenants))
    assert "$" not in sql
    return sql


def ask(store: Store, title: str, *tenants: str, query: int = 0) -> list[Row]:
    """The rows of a panel's query over the hour from T0."""
    return store.query(expanded(CLICKHOUSE[title]["targets"][query]["rawSql"], list(tenants)))


def test_files_are_current() -> None:
    """The JSON is what the Python beside it writes."""
    said = subprocess.run(
        [sys.executable, "-m", "examples.provider.grafana.write", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (said.returncode, said.stdout) == (0, ""), said.stderr


@pytest.mark.parametrize("name", ["clickhouse", "prometheus"])
def test_form(name: str) -> None:
    """Ids differ, panels lie on the grid and not on one another, and their source is the one that is provisioned."""
    dashboard = json.loads((GRAFANA / f"{name}.json").read_text("utf-8"))
    [source] = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / f"{name}.yaml").read_text("utf-8"))[
        "datasources"
    ]
    seen: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & seen
        seen |= cells
        assert panel["description"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": source["type"], "uid": source["uid"]}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids) == len(panels(name))


@pytest.mark.parametrize(("title", "index"), [(t, i) for t, p in CLICKHOUSE.items() for i in range(len(p["targets"]))])
def test_answers_nothing_of_nobody(store: Store, title: str, index: int) -> None:
    """Every query runs, and tells no tenant that was not asked for."""
    rows = ask(store, title, "nobody", query=index)
    assert all(
        value is None or key == "GPU-hours in steps" for row in rows for key, value in row.items() if key != "time"
    )


def test_tenants(store: Store, tenant: str, window: Make) -> None:
    """The variable offers who sent in the range."""
    store.insert_spans(tenant, [window()])
    asked = json.loads((GRAFANA / "clickhouse.json").read_text("utf-8"))["templating"]["list"][0]["query"]
    assert {"tenant": tenant} in store.query(expanded(asked, []))


def judged(window: Make, at_s: float = 0.0, **resource: object) -> Any:
    """A window of 1e15 of 4e15 FLOPs in 27 s, of which half was expected."""
    return window(at_s, resource=resource, mfu__expected__flop=2e15, mfu__expected__available__flop=4e15)


def test_fleet(store: Store, tenant: str, window: Make) -> None:
    """1e15 of 4e15 and 1e13 of 1e15 are 1.01 of 5, not the mean of 25 % and 1 %; expected is what knows one."""
    small = window(60, resource={"mfu.workload.name": "tiny"}, mfu__model__flop=1e13, mfu__available__flop=1e15)
    store.insert_spans(tenant, [judged(window), small])
    assert ask(store, "Fleet", tenant) == [
        {"MFU": pytest.approx(0.202), "expected MFU": pytest.approx(0.5)},
    ]
    [hours] = ask(store, "Observed", tenant)
    assert hours["GPU-hours in steps"] == pytest.approx(54 / 3600)


def test_over_time(store: Store, tenant: str, window: Make) -> None:
    """Each five minutes by themselves, for the fleet and for each GPU type; a day is one point."""
    rows = [judged(window, 0), window(600, resource={"hw.name": "A100"}, mfu__model__flop=2e15)]
    store.insert_spans(tenant, rows)
    use = ask(store, "MFU, and what looks like use", tenant)
    assert [(row["MFU"], row["expected MFU"]) for row in use] == [(0.25, 0.5), (0.5, None)]
    types = ask(store, "By GPU type", tenant)
    assert [(row["gpu_type"], row["mfu"]) for row in types] == [("H100", 0.25), ("A100", 0.5)]
    [day] = ask(store, "Trend", tenant)
    assert (day["MFU"], day["of what is expected"]) == (pytest.approx(0.375), pytest.approx(0.75))


def test_what_looks_like_use(store: Store) -> None:
    """Two GPUs, busy for 100 % and 50 % of the time, one of which a pod holds."""
    named = {"MetricName": "DCGM_FI_DEV_GPU_UTIL", "TimeUnix": timestamp(T0 + MINUTE)}
    store.insert_points(
        PointRow("gauge", {**named, "Attributes": {"UUID": f"GPU-{pod}", "pod": pod}, "Value": value})
        for pod, value in (("llama-0", 100.0), ("", 50.0))
    )
    [row] = ask(store, "MFU, and what looks like use", "nobody", query=1)
    assert (row["GPUs busy (DCGM)"], row["GPUs held by pods (DCGM)"]) == (0.75, 0.5)


def test_short(store: Store, tenant: str, window: Make) -> None:
    """A workload at half of its expectation lost half its hours; one that reaches it and one unjudged are not there."""
    met = window(
        0, resource={"mfu.workload.name": "met"}, mfu__expected__flop=1e15, mfu__expected__available__flop=4e15
    )
    store.insert_spans(tenant, [judged(window), met, window(0, resource={"mfu.workload.name": "unjudged"})])
    [row] = ask(store, "Workloads that fall short, by the GPU-hours that it costs", tenant)
    assert (row["workload"], row["mfu"], row["expected"], row["attained"]) == ("gpt", 0.25, 0.5, 0.5)
    assert row["short_gpu_hours"] == pytest.approx(0.5 * 27 / 3600)


def test_batches(store: Store, tenant: str, window: Make) -> None:
    """8 run where 32 would fit: a quarter; what is not told stays unknown."""
    told = {"mfu__batch__running": 8, "mfu__batch__feasible": 32, "mfu__queue__waiting": 0, "mfu__phase": "decode"}
    store.insert_spans(tenant, [window(**told)])
    [row] = ask(store, "Batches below what would fit", tenant)
    assert (row["phase"], row["running"], row["feasible"], row["fill"], row["waiting"]) == ("decode", 8, 32, 0.25, 0)
    assert (row["kv_cache_free"], row["target_s"]) == (None, None)


def test_scaling(store: Store, tenant: str, window: Make) -> None:
    """From one rank to two MFU goes from 0.25 to 0.2: 80 % of the fewest's."""
    shared = {"mfu.workload.family": "f", "mfu.dist.world_size": 1}
    rows = [window(0, resource=shared, mfu__token__count=2700)]
    for rank in (0, 1):
        who = {**shared, "mfu.dist.world_size": 2, "mfu.dist.rank": rank, "mfu.run.id": "run-2"}
        rows.append(window(0, resource=who, mfu__token__count=2160, mfu__model__flop=0.8e15))
    store.insert_spans(tenant, rows)
    found = ask(store, "The same model on more ranks", tenant)
    assert [(row["ranks"], row["mfu"]) for row in found] == [(1, 0.25), (2, pytest.approx(0.2))]
    assert [row["tokens_per_s_of_a_rank"] for row in found] == pytest.approx([100, 80])
    assert [row["of_the_fewest"] for row in found] == pytest.approx([1, 0.8])


def test_drift(store: Store, tenant: str, span: Make) -> None:
    """An excursion is there with its cause."""
    told = {
        "mfu__phase": "train",
        "mfu__drift__kind": "slower",
        "mfu__drift__change": 0.1,
        "mfu__drift__cause": "straggler",
    }
    store.insert_spans(tenant, [span("mfu.drift", 120, 90, **told)])
    [row] = ask(store, "Drift", tenant)
    assert (row["workload"], row["change"], row["cause"], row["lasted_s"]) == ("gpt", 0.1, "straggler", 90)


def test_health(store: Store, tenant: str, window: Make) -> None:
    """A counter from before the range counts what it grew, one that began in it all of it; overhead is of step time."""
    before, within = timestamp(T0 - 60 * MINUTE), timestamp(T0 + MINUTE)

    def point(name: str, started: str, at_minute: int, value: float, instance: str, **labels: str) -> PointRow:
        resource = {"mfu.tenant.id": tenant, "mfu.workload.name": "gpt", "service.instance.id": instance}
        return PointRow("sum", {
            "MetricName": name, "ResourceAttributes": resource, "StartTimeUnix": started, "Value": value,
            "TimeUnix": timestamp(T0 + at_minute * MINUTE),
            "Attributes": {label.replace("_", "."): told for label, told in labels.items()},
        })  # fmt: skip

    reason = {"mfu_drop_reason": "queue_full"}
    total, data = {"mfu_step_component": "total"}, {"mfu_step_component": "data"}
    step = {"mfu_sdk_thread": "step"}
    store.insert_points([
        *(point("mfu.sdk.dropped", before, at, value, "old", **reason) for at, value in ((2, 100), (3, 104))),
        *(point("mfu.sdk.dropped", within, at, value, "new", **reason) for at, value in ((2, 1), (3, 3))),
        *(point("mfu.sdk.overhead", before, at, value, "old", **step) for at, value in ((2, 5), (3, 5.3))),
        *(point("mfu.step.time", before, at, value, "old", **total) for at, value in ((2, 1000), (3, 1060))),
        *(point("mfu.step.time", before, at, value, "old", **data) for at, value in ((2, 9), (3, 99))),
    ])  # fmt: skip
    assert ask(store, "What the SDK lost", tenant) == [
        {"tenant": tenant, "workload": "gpt", "reason": "queue_full", "items": 4 + 3}
    ]
    [cost] = ask(store, "What the SDK costs", tenant)
    assert cost["overhead"] == pytest.approx(0.3 / 60)
    store.insert_spans(tenant, [window(mfu__window__step__unknown=3)])
    [unknown] = ask(store, "Steps that could not be counted", tenant)
    assert unknown["unknown"] == pytest.approx(3 / 9)
