"""From spans over real OTLP to what people see: the report's causes, kept findings, and what is decided about them."""

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mfu_sdk import semconv
from mfu_sdk.provider import pages, report
from mfu_sdk.provider.serve import Server
from mfu_sdk.testing import FakeClock

T0 = 1_780_000_200 * 10**9
"""2026-05-28T20:30:00Z."""
HOUR = 3600 * 10**9
DAY = 24 * HOUR
FREE = ("127.0.0.1", 0)
H100 = "NVIDIA H100 80GB HBM3"
PEAK = 989.4e12

INVENTORY = """
nodes: [{host: node-0, gpu_type: "NVIDIA H100 80GB HBM3", gpus: 8, link: nvlink, from: 2026-01-01}]
"""


def windows(workload: str, more: dict[str, object], ranks: int = 2) -> bytes:
    """A minute of windows of each rank, as a tenant's SDK sends them."""
    made = ExportTraceServiceRequest()
    for rank in range(ranks):
        group = made.resource_spans.add()
        for key, value in {
            semconv.WORKLOAD_NAME: workload, semconv.RUN_ID: f"{workload}-1", semconv.HOST_NAME: "node-0",
            semconv.HW_NAME: H100, semconv.HW_ID: f"GPU-{workload}-{rank}", semconv.WORKLOAD_FAMILY: "f1",
            "hw.driver_version": "550.54",
        }.items():  # fmt: skip
            group.resource.attributes.add(key=key).value.string_value = value
        for key, number in ((semconv.DIST_RANK, rank), (semconv.DIST_WORLD_SIZE, ranks)):
            group.resource.attributes.add(key=key).value.int_value = number
        scoped = group.scope_spans.add()
        for at in range(2):
            start = T0 - 600 * 10**9 + at * 30 * 10**9
            span = scoped.spans.add(
                name=semconv.SPAN_WINDOW, trace_id=os.urandom(16), span_id=os.urandom(8), start_time_unix_nano=start,
                end_time_unix_nano=start + 30 * 10**9,
            )  # fmt: skip
            told: dict[str, object] = {
                semconv.PHASE: "train", semconv.MODEL_FLOP: 0.4 * PEAK * 30, semconv.AVAILABLE_FLOP: PEAK * 30,
                semconv.EXPECTED_FLOP: 0.5 * PEAK * 30, semconv.EXPECTED_AVAILABLE_FLOP: PEAK * 30,
                semconv.STEP_TIME: 30.0, semconv.WINDOW_STEP_COUNT: 300, semconv.WINDOW_STEP_TIMED: 300,
                semconv.WINDOW_STEP_UNKNOWN: 0, **more,
            }  # fmt: skip
            for key, attribute in told.items():
                kind = "string" if isinstance(attribute, str) else "int" if isinstance(attribute, int) else "double"
                setattr(span.attributes.add(key=key).value, f"{kind}_value", attribute)
    return bytes(made.SerializeToString())


@dataclass
class Provider:
    """A running server and the clock it goes by; answers are (status, parsed JSON or text)."""

    server: Server
    clock: FakeClock

    def ask(self, path: str, token: str | None, body: object = None, kind: str = "application/json") -> tuple[int, Any]:
        host, port = self.server.web_address
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": kind} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        try:
            request = urllib.request.Request(f"http://{host}:{port}{path}", data, headers)
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def send(self, body: bytes, token: str) -> None:
        host, port = self.server.http_address
        headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {token}"}
        with urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/v1/traces", body, headers)) as answer:
            assert answer.status == 200


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """acme (a) waits for data with three workloads; globex (g) is fine, and its other workload unexplained; ops (o)."""
    home = tmp_path_factory.mktemp("served")
    (home / "tokens").write_text("tenants: {acme: [{token: a}], globex: [{token: g}]}\noperators: {ops: [{token: o}]}")
    (home / "inventory.yaml").write_text(INVENTORY)
    clock = FakeClock(T0)
    held = [home / "inventory.yaml"]
    server = Server(home / "data", http=FREE, web=FREE, tokens=home / "tokens", inventory=held, now_unix_ns=clock)
    ready = threading.Event()
    serving = threading.Thread(target=server.serve_until_stopped, args=(lambda addresses: ready.set(),))
    serving.start()
    try:
        assert ready.wait(120)
        found = Provider(server, clock)
        for name in ("llama", "gpt", "vit"):
            found.send(windows(name, {semconv.STEP_DATA_TIME: 9.0}), "a")
        found.send(windows("fine", {semconv.MODEL_FLOP: 0.49 * PEAK * 30}), "g")
        found.send(windows("puzzle", {semconv.STEP_DATA_TIME: 0.1}), "g")
        yield found
    finally:
        server.stop()
        serving.join(120)
    assert not serving.is_alive()


@pytest.fixture(scope="module")
def reports(provider: Provider) -> dict[str, Any]:
    """What the operator and globex see, by their tokens, before anything was decided."""
    return {token: provider.ask("/api/report?since=1h", token)[1] for token in "og"}


def test_report(reports: dict[str, Any]) -> None:
    """The causes of the report have the public names; a tenant sees its own, an operator what they share too."""
    found = reports["o"]
    assert [(each["workload"], each["cause"]) for each in found["causes"]] == [
        ("gpt", "input_bound"), ("llama", "input_bound"), ("vit", "input_bound"), ("puzzle", "unknown"),
    ]  # fmt: skip
    first = found["causes"][0]
    assert set(first) == {
        "tenant", "workload", "run_id", "cause", "loss_share", "confidence", "evidence", "remedy", "gpu_type",
        "world_size", "phase", "state",
    }  # fmt: skip
    assert (first["tenant"], first["run_id"], first["loss_share"], first["state"]) == ("acme", "gpt-1", 0.3, "open")
    assert first["evidence"] == {"data_share": 0.3}
    # The inventory was looked at, so that nothing is left out.
    assert found["causes_left_out"] == {}
    shared = [(each["cause"], each["kind"], each["workloads"]) for each in found["shared_causes"]]
    # All five workloads are on one driver and one node: there is nobody else to tell them from.
    assert shared == []
    assert [(each["tenant"], each["workload"]) for each in reports["g"]["causes"]] == [("globex", "puzzle")]


def test_text(reports: dict[str, Any]) -> None:
    """The text says what it costs and what to do, and that of muted causes only how many there are."""
    found = report.from_json(json.dumps(reports["o"]))
    text = report.render_text(found, 120)
    assert "Why workloads are low" in text
    assert "input_bound" in text
    assert "raise the loader's num_workers" in text
    assert report.from_json(report.to_json(found)) == found
    muted = replace(found, causes=tuple(replace(each, state="muted") for each in found.causes))
    assert "4 muted causes not shown" in report.render_text(muted, 120)
    assert "Why workloads are low" not in report.render_text(muted, 120)
    page = pages.render_html(found)
    assert "<b>waiting for input</b>" in page
    assert "<b>waiting for input</b>" not in pages.render_html(muted)
    assert "4 are acknowledged or muted." in pages.render_html(muted)


def test_findings(provider: Provider) -> None:
    """One for each workload, cause and day; asking again changes nothing, whatever the tenant."""
    _, first = provider.ask("/api/findings?since=1h", "o")
    _, again = provider.ask("/api/findings?since=1h", "o")
    assert first == again
    found = first["findings"]
    assert {(each["workload"], each["cause"], each["day"], each["state"]) for each in found} == {
        (name, cause, "2026-05-28", "open")
        for name, cause in (
            ("gpt", "input_bound"),
            ("llama", "input_bound"),
            ("vit", "input_bound"),
            ("puzzle", "unknown"),
        )
    }
    assert len({each["id"] for each in found}) == len(found) == 4
    _, own = provider.ask("/api/findings", "g")
    assert [each["workload"] for each in own["findings"]] == ["puzzle"]
    assert provider.ask("/api/findings?tenant=acme", "g")[0] == 403
    assert provider.ask("/api/findings", None)[0] == 401


def test_decisions(provider: Provider) -> None:
    """An operator decides, nobody else; it holds from that day on and outlives the next judgement."""
    _, found = provider.ask("/api/findings?since=1h", "o")
    one = next(each for each in found["findings"] if each["workload"] == "vit")
    path = f"/api/findings/{one['id']}/state"
    for token, status in (("a", 403), (None, 401)):
        assert provider.ask(path, token, {"state": "muted"})[0] == status
    assert provider.ask(path, "o", {"state": "gone"})[0] == 400
    assert provider.ask(path, "o", ["muted"])[0] == 400
    assert provider.ask(path, "o", {"state": "muted", "note": "x" * 1001})[0] == 400
    assert provider.ask(path, "o", {"state": "muted", "note": "x" * 20_000})[0] == 413
    assert provider.ask(path, "o", {"state": "muted"}, "text/plain")[0] == 415
    for nothing in ("0" * 16 + "-2026-05-28", one["id"].replace("05-28", "05-27"), "nothing", "a-2026-13-41"):
        assert provider.ask(f"/api/findings/{nothing}/state", "o", {"state": "muted"})[0] == 404
    status, told = provider.ask(path, "o", {"state": "muted", "note": "a known loader"})
    assert (status, told["state"], told["by"], told["note"]) == (200, "muted", "ops", "a known loader")
    # A tenant sees what was decided about its own.
    _, own = provider.ask("/api/findings?since=1h", "a")
    assert {each["workload"]: each["state"] for each in own["findings"]} == {
        "gpt": "open",
        "llama": "open",
        "vit": "muted",
    }
    _, shown = provider.ask("/api/report?since=1h", "a")
    assert {each["workload"]: each["state"] for each in shown["causes"]}["vit"] == "muted"
    # Judged once more, a quarter of an hour later, and after the day is over for good.
    for later in (900 * 10**9, 2 * DAY):
        provider.clock.now_ns = T0 + later
        _, found = provider.ask("/api/findings?since=2026-05-28&until=2026-05-29", "o")
        assert {each["workload"]: each["state"] for each in found["findings"]}["vit"] == "muted"
        assert len(found["findings"]) == 4
    assert provider.ask(path, "o", {"state": "open"})[1]["state"] == "open"
