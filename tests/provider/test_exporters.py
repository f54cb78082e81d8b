"""The provider's exporters end to end: real OTLP by tokens into a real store, and the operator's report by hand."""

import http.client
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from mfu_sdk import semconv
from mfu_sdk.provider import report
from mfu_sdk.provider.report import Report
from mfu_sdk.provider.serve import Server
from mfu_sdk.testing import FakeClock

START = 1_780_002_000
"""2026-05-28T21:00:00Z, in seconds."""
END = START + 2 * 3600
H100 = "NVIDIA H100 80GB HBM3"
PEAK = 989_429_760_000_000.0
INVENTORY = f"""
nodes:
  - {{host: node-1, gpu_type: {H100}, gpus: 2, gpu_uuids: [GPU-a0, GPU-a1], from: 2026-01-01}}
  - {{host: node-2, gpu_type: {H100}, gpus: 2, gpu_uuids: [GPU-b0, GPU-b1], from: 2026-01-01}}
allocations:
  - {{tenant: acme, workload: gpt, host: node-1, gpus: 2, gpu_uuids: [GPU-a0, GPU-a1], contract: on_demand,
      from: 2026-05-28T21:00:00Z, until: 2026-05-28T23:00:00Z}}
  - {{tenant: globex, host: node-2, gpus: 1, contract: on_demand,
      from: 2026-05-28T21:00:00Z, until: 2026-05-28T22:00:00Z}}
"""
PRICES = f"""
currency: USD
prices: [{{gpu_type: {H100}, contract: on_demand, per_gpu_hour: 3.00, from: 2026-01-01}}]
costs: [{{gpu_type: {H100}, per_gpu_hour: 2.00, from: 2026-01-01}}]
"""
TOKENS = """
tenants: {acme: [{token: a}], globex: [{token: g}]}
operators: {ops: [{token: o}]}
providers: {dcgm: [{token: p}]}
"""


@dataclass
class Provider:
    """A running server."""

    server: Server

    def send(self, path: str, message: Any, token: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.server.http_address, timeout=120)
        headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {token}"}
        try:
            connection.request("POST", path, body=message.SerializeToString(), headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str, token: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self.server.web_address, timeout=300)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def report(self, token: str, query: str = "") -> dict[str, Any]:
        status, text = self.get(f"/api/report?since=2026-05-28T21:00:00Z&until=2026-05-28T23:00:00Z{query}", token)
        assert status == 200, text
        found: dict[str, Any] = json.loads(text)
        return found


def scrape(host: str, samples: Mapping[tuple[str, int], Mapping[str, float]]) -> ExportMetricsServiceRequest:
    """What a Collector sends for one host: by (UUID, seconds), values by metric; ECC errors as the sums it makes."""
    request = ExportMetricsServiceRequest()
    group = request.resource_metrics.add()
    entry = group.resource.attributes.add(key="service.name")
    entry.value.string_value = "dcgm-exporter"
    metrics = group.scope_metrics.add().metrics
    for (uuid, at_s), values in samples.items():
        for name, value in values.items():
            metric = metrics.add(name=name)
            if "ECC" in name:
                metric.sum.is_monotonic = True
                metric.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
                point = metric.sum.data_points.add(time_unix_nano=at_s * 10**9, as_double=value)
            else:
                point = metric.gauge.data_points.add(time_unix_nano=at_s * 10**9, as_double=value)
            labels = {"UUID": uuid, "gpu": uuid[-1], "device": f"nvidia{uuid[-1]}", "modelName": H100, "Hostname": host}
            for key, text in labels.items():
                point.attributes.add(key=key).value.string_value = text
    return request


def values(tensor: float, mhz: float, util: float, xid: int = 0, double: int = 0) -> dict[str, float]:
    """One scrape of one GPU."""
    return {
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": tensor,
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE": util / 100,
        "DCGM_FI_DEV_SM_CLOCK": mhz,
        "DCGM_FI_DEV_GPU_UTIL": util,
        "DCGM_FI_DEV_POWER_USAGE": 500.0,
        "DCGM_FI_DEV_XID_ERRORS": xid,
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": double,
    }


def steps() -> ExportTraceServiceRequest:
    """What acme's SDK sends of GPU-a0: windows at 0.8 of the peak, one step and one run that failed."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    resource: dict[str, str | int] = {
        semconv.SERVICE_NAME: "gpt", semconv.WORKLOAD_NAME: "gpt", semconv.RUN_ID: "run-1", semconv.RUN_ATTEMPT: 0,
        semconv.DIST_RANK: 0, semconv.DIST_WORLD_SIZE: 1, semconv.HOST_NAME: "node-1", semconv.HW_NAME: H100,
        semconv.HW_ID: "GPU-a0",
    }  # fmt: skip
    for key, value in resource.items():
        _set(group.resource.attributes.add(key=key).value, value)
    spans = group.scope_spans.add().spans
    window = {
        semconv.MODEL_FLOP: 0.8 * PEAK * 300, semconv.HARDWARE_FLOP: 0.8 * PEAK * 300,
        semconv.AVAILABLE_FLOP: PEAK * 300, semconv.STEP_TIME: 300.0, semconv.WINDOW_STEP_COUNT: 10,
        semconv.WINDOW_STEP_TIMED: 10, semconv.WINDOW_STEP_UNKNOWN: 0, semconv.PEAK_DTYPE: "bfloat16",
        semconv.PHASE: "train", "mfu.witness.utilization": 0.8, "mfu.utilization": 0.8, "mfu.dtype.utilization": 0.8,
    }  # fmt: skip
    sent: list[tuple[str, int, int, Mapping[str, Any]]] = [
        (semconv.SPAN_WINDOW, START + 300 * n, 300, window) for n in range(24)
    ]
    sent.append((semconv.SPAN_STEP, START + 60, 30, {semconv.ERROR_TYPE: "RuntimeError"}))
    sent.append((semconv.SPAN_RUN, START, 7000, {semconv.ERROR_TYPE: "RuntimeError"}))
    for number, (name, at_s, lasts_s, attributes) in enumerate(sent, 1):
        span = spans.add(
            name=name, trace_id=number.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"),
            start_time_unix_nano=at_s * 10**9, end_time_unix_nano=(at_s + lasts_s) * 10**9,
        )  # fmt: skip
        for key, value in attributes.items():
            _set(span.attributes.add(key=key).value, value)
    return request


def _set(to: Any, value: str | float) -> None:
    if isinstance(value, str):
        to.string_value = value
    elif isinstance(value, int):
        to.int_value = value
    else:
        to.double_value = value


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """Two hours of two nodes: acme holds node-1 and tells of one GPU; globex holds half of node-2 for an hour."""
    home = tmp_path_factory.mktemp("exporters")
    (home / "tokens.yaml").write_text(TOKENS)
    (home / "inventory.yaml").write_text(INVENTORY)
    (home / "prices.yaml").write_text(PRICES)
    server = Server(
        home / "data", http=("127.0.0.1", 0), web=("127.0.0.1", 0), tokens=home / "tokens.yaml",
        inventory=[home / "inventory.yaml"], prices=[home / "prices.yaml"], now_unix_ns=FakeClock(END * 10**9),
    )  # fmt: skip
    ready = threading.Event()
    serving = threading.Thread(target=server.serve_until_stopped, args=(lambda addresses: ready.set(),))
    serving.start()
    assert ready.wait(120)
    found = Provider(server)
    first = [START + 300 * n + 10 for n in range(12)]
    second = [at + 3600 for at in first]
    node_1 = {("GPU-a0", at): values(0.4, 1830, 100, 31) for at in (START - 290, *first, *second)}
    node_1 |= {("GPU-a1", at): values(0.2, 1830, 100) for at in first}
    node_1 |= {("GPU-a1", at): values(0.0, 915, 100) for at in second}
    node_2 = {("GPU-b0", at): values(0.1, 1464, 100) for at in first}
    node_2 |= {("GPU-b0", at): values(0.0, 1464, 0, 79) for at in second}
    node_2 |= {("GPU-b1", at): values(0.0, 1830, 0) for at in first}
    node_2 |= {("GPU-b1", at): values(0.0, 1830, 0, 0, 2) for at in second}
    for host, samples in (("node-1", node_1), ("node-2", node_2)):
        assert found.send("/v1/metrics", scrape(host, samples), "p") == (200, b"")
    assert found.send("/v1/traces", steps(), "a") == (200, b"")
    # A tenant's own exporter, of its own GPU, of another's and of one that is nobody's: its word, and no witness.
    claims = {(uuid, at): values(1.0, 1980, 100, 79, 9) for uuid in ("GPU-a0", "GPU-b1", "GPU-x9") for at in first}
    assert found.send("/v1/metrics", scrape("node-2", claims), "a") == (200, b"")
    try:
        yield found
    finally:
        server.stop()
        serving.join(120)


@pytest.fixture(scope="module")
def use(provider: Provider) -> dict[str, Any]:
    """The operator's view of the fleet's use."""
    found: dict[str, Any] = provider.report("o")["fleet_use"]
    return found


def test_a_tenants_exporter_is_no_witness(provider: Provider) -> None:
    """Points that a tenant sends are stored as the tenant's and reach none of the provider's sums."""
    rows = provider.server._store.query(
        "SELECT ResourceAttributes['mfu.tenant.id'] AS who, uniqExact(Attributes['UUID']) AS gpus"
        " FROM otel.otel_metrics_gauge GROUP BY who ORDER BY who"
    )
    assert rows == [{"who": "acme", "gpus": 3}, {"who": "provider:dcgm", "gpus": 4}]
    summed = provider.server._store.query("SELECT DISTINCT gpu FROM otel.mfu_gpus_5m ORDER BY gpu")
    assert [row["gpu"] for row in summed] == ["GPU-a0", "GPU-a1", "GPU-b0", "GPU-b1"]


def test_what_a_providers_token_may_do(provider: Provider) -> None:
    """It sends metrics: no spans, and it reads nothing; an operator's still sends nothing."""
    assert provider.send("/v1/traces", ExportTraceServiceRequest(), "p")[0] == 403
    assert provider.send("/v1/metrics", ExportMetricsServiceRequest(), "o")[0] == 403
    assert [provider.get(path, "p")[0] for path in ("/", "/api/report", "/api/findings", "/api/baseline")] == [403] * 4


def test_allocated_busy_useful(use: dict[str, Any]) -> None:
    """Five of eight hours held, 90 % of them with a kernel, tensor pipes busy for 0.21 of them, by hand."""
    assert use["over"] == "allocated"
    assert use["allocation"] == {"value": 5 / 8, "gpu_hours": 8.0, "owned_share": 1.0}
    # a0 and a1 two hours each at 100 %; of node-2 half of each GPU for an hour, one of them busy.
    assert use["gpu_utilization"] == {"value": pytest.approx(4.5 / 5), "gpu_hours": 5.0, "owned_share": 5 / 8}
    assert use["engine_activity"]["value"] == pytest.approx(4.5 / 5)
    tensor = (0.4 * 2 + 0.2 * 1 + 0.1 * 0.5) / 5
    assert use["tensor_activity"]["value"] == pytest.approx(tensor)


def test_estimates_are_apart(use: dict[str, Any]) -> None:
    """Three GPUs without steps: 0.2 for an hour, 0.1 at 0.8 of the clock for another, of six; no MFU has any of it."""
    mhz = (0.2 * 1830 + 0.1 * 1464) / 1830
    assert use["estimated_mfu"]["value"] == pytest.approx(mhz / 6)
    assert use["estimated_mfu"]["gpu_hours"] == 6.0
    assert use["estimated_mfu"]["owned_share"] == 6 / 8
    assert use["estimated_flop"] == pytest.approx(mhz * 3600 * PEAK)
    assert [(row["gpu_type"], row["gpus"]) for row in use["estimates"]] == [(H100, 3)]
    assert "0.78" in use["estimate_error"]
    assert use["mfu"]["value"] == pytest.approx(0.8)
    assert use["mfu"]["gpu_hours"] == 2.0
    assert use["mfu"]["owned_share"] == 2 / 8
    # 2 h × 0.8 of 8 owned GPU-hours.
    assert use["owned_mfu"] == {"value": pytest.approx(0.2), "gpu_hours": 8.0, "owned_share": 1.0}


def test_nodes(use: dict[str, Any]) -> None:
    """The node that lost a GPU comes first and says what to do; an application's Xid from before is told, no more."""
    bad, good = use["nodes"]
    assert (bad["host"], bad["state"], good["host"], good["state"]) == ("node-2", "unhealthy", "node-1", "healthy")
    assert bad["xids"] == [
        {
            "code": 79, "times": 1, "last_at": "2026-05-28T22:00:10Z", "gpus": ["GPU-b0"],
            "meaning": "GPU has fallen off the bus", "remedy": bad["xids"][0]["remedy"],
        }
    ]  # fmt: skip
    assert "drain" in bad["advice"]
    assert "Xid 79" in bad["advice"]
    assert bad["double_bit_errors"] == 2
    assert bad["single_bit_errors"] is None
    assert (bad["mfu"], bad["estimated_mfu"], bad["allocation"]) == (None, pytest.approx(0.08 / 4), 0.25)
    assert [(seen["code"], seen["times"], seen["last_at"]) for seen in good["xids"]] == [(31, 0, None)]
    assert good["advice"] is None
    assert good["double_bit_errors"] == 0
    assert (good["gpu_utilization"], good["mfu"], good["power_w"]) == (1.0, pytest.approx(0.8), 500.0)
    assert (good["steps"], good["failed_steps"], good["step_error_rate"]) == (240, 1, 1 / 240)
    assert (good["runs"], good["failed_runs"], good["run_error_rate"]) == (1, 1, 1.0)
    assert (bad["steps"], bad["failed_steps"], bad["runs"], bad["run_error_rate"]) == (None, None, None, None)


def test_the_providers_witness(provider: Provider, use: dict[str, Any]) -> None:
    """acme counts 0.8 and says that its device did; the exporter saw 0.4: that goes before, and is a finding."""
    (row,) = use["witnesses"]
    assert (row["tenant"], row["workload"], row["by"], row["gpu_hours"]) == ("acme", "gpt", "provider", 2.0)
    assert (row["counted"], row["witnessed"], row["ratio"]) == (pytest.approx(0.8), pytest.approx(0.4), 2.0)
    (found,) = [each for each in provider.report("a")["causes"] if each["cause"] == "accounting"]
    assert found["loss_share"] == pytest.approx(0.5)
    assert found["evidence"]["witness"] == "the provider's exporter"


def test_what_clashes_sets_no_price(provider: Provider) -> None:
    """The hours that acme claims twice the FLOPs of are contradicted: told in the notes, and in no price's tier."""
    money = provider.report("o")["economics"]
    assert money["trust"] == {"witnessed": 0.0, "consistent": 0.0, "claimed": 0.0, "contradicted": 2.0}
    assert "2.0 GPU-hours of steps of acme cannot be as they are told" in " ".join(money["notes"])
    assert money["tiers"] == []


def test_tenants_are_told_of_no_nodes(provider: Provider) -> None:
    """A tenant's report has none of the exporters' figures, and names no node that is not its own."""
    for token in ("a", "g"):
        told = provider.report(token)
        assert told["fleet_use"] is None
        assert not {"node-2", "GPU-b0", "GPU-a1"} & set(_texts(told))
    # An operator who asks for one tenant's part sees that.
    assert provider.report("o", "&tenant=acme")["fleet_use"] is None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)


SPAN = "?since=2026-05-28T21:00:00Z&until=2026-05-28T23:00:00Z"


def test_the_page_shows_the_illusion(provider: Provider) -> None:
    """In one card, in this order, each with its hours: allocated, any kernel, tensor pipes busy, MFU, useful."""
    status, page = provider.get(f"/{SPAN}", "o")
    card = " ".join(re.sub("<[^>]+>", " ", page[page.index('<dl class="chain">') : page.index("</dl>")]).split())
    assert status == 200
    told = "of 5.0 allocated GPU-hours that DCGM told of, 62.5 % of those owned"
    figures = (
        "Allocated 62.5 % of 8.0 GPU-hours owned",
        f"GPU utilization 90.0 % any kernel running, {told}",
        f"Tensor activity 21.0 % tensor pipes busy, {told}",
        "In steps 40.0 % of the allocated GPU-hours, weighted by peak",
        "MFU 80.0 % of what the devices could have done in 2.0 GPU-hours of steps; devices that sent them",
        "Useful 20.0 % of what 8.0 GPU-hours owned could have done",
        # 0.2 and 0.08 of an hour each, of six.
        "Without the SDK ≈ 4.7 % an estimate, in none of the MFUs above, over 6.0 GPU-hours without steps, 75.0 % of",
    )
    places = [card.find(figure) for figure in figures]
    assert -1 not in places, card
    assert places == sorted(places)
    assert "devices that sent them were held for 25.0 % of those owned" in card
    assert "r = 0.78" in card


def test_pages_tell_tenants_of_no_exporter(provider: Provider) -> None:
    """A tenant's pages have no figure of the exporters', and no page of a node that ran nothing of theirs."""
    for path in ("/", "/nodes", "/nodes/node-1"):
        status, page = provider.get(path + SPAN, "a")
        assert status == 200
        assert not re.search("DCGM|dcgm|node-2|GPU-a1|Tensor activity|How nodes are|How it is", page)
    assert provider.get(f"/nodes/node-2{SPAN}", "a")[0] == 404
    node = " ".join(re.sub("<[^>]+>", " ", provider.get(f"/nodes/node-1{SPAN}", "o")[1]).split())
    assert "How it is healthy" in node
    assert "Xid 31 , graphics engine" not in node
    assert "Xid 31 , memory page fault: shown since before this time; on GPU-a0" in node
    assert "Steps failed 0.4 % 1 of 240" in node


def test_the_text_shows_the_illusion(provider: Provider) -> None:
    """The section puts allocated, busy and useful beside each other, and the unhealthy node with what to do."""
    found: Report = report.from_json(json.dumps(provider.report("o")))
    assert json.loads(report.to_json(found))["fleet_use"] == provider.report("o")["fleet_use"]
    text = report.render_text(found, 120)
    section = text[text.index("Allocated, busy, useful") :]
    assert "62.5 %" in section
    assert "90.0 %" in section
    assert "estimate" in section
    assert section.index("node-2") < section.index("node-1 ")
    assert "Xid 79" in section
