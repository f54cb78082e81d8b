"""A provider in a thread, fed over real OTLP and asked over real HTTP, for tests of its pages."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any

from mfu_sdk import semconv
from mfu_sdk.provider.serve import Server

GPU = "NVIDIA H100 80GB HBM3"


@dataclass(frozen=True)
class Fed:
    """A server in a thread; `get` answers (status, headers, body) as `token` sees it."""

    server: Server

    @property
    def web(self) -> str:
        host, port = self.server.web_address
        return f"http://{host}:{port}"

    def send(self, spans: Sequence[Mapping[str, Any]], token: str | None = None) -> None:
        host, port = self.server.http_address
        headers = {"Content-Type": "application/json"} | _bearer(token)
        body = json.dumps({"resourceSpans": spans}).encode()
        asked = urllib.request.Request(f"http://{host}:{port}/v1/traces", body, headers)
        with urllib.request.urlopen(asked, timeout=300) as answer:
            assert answer.status == 200

    def send_gauge(self, name: str, labels: Mapping[str, str], value: float, at_unix_ns: int, token: str) -> None:
        """One point of an exporter's."""
        host, port = self.server.http_address
        point = {"timeUnixNano": str(at_unix_ns), "asDouble": value, "attributes": _attributes(labels)}
        metric = {"name": name, "gauge": {"dataPoints": [point]}}
        body = json.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}).encode()
        headers = {"Content-Type": "application/json"} | _bearer(token)
        asked = urllib.request.Request(f"http://{host}:{port}/v1/metrics", body, headers)
        with urllib.request.urlopen(asked, timeout=300) as answer:
            assert answer.status == 200

    def get(self, path: str, token: str | None = None) -> tuple[int, Message, str]:
        asked = urllib.request.Request(self.web + path, headers=_bearer(token))
        try:
            with urllib.request.urlopen(asked, timeout=300) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    def post(self, path: str, body: Any, token: str) -> int:
        headers = {"Content-Type": "application/json"} | _bearer(token)
        asked = urllib.request.Request(self.web + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(asked, timeout=300) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


def serving(server: Server) -> Iterator[Fed]:
    """Run `server` until the iterator is closed."""
    ready = threading.Event()
    thread = threading.Thread(target=server.serve_until_stopped, args=(lambda addresses: ready.set(),))
    thread.start()
    try:
        assert ready.wait(120)
        yield Fed(server)
    finally:
        server.stop()
        thread.join(120)
    assert not thread.is_alive()


def resource(workload: str, **changes: Any) -> dict[str, Any]:
    """What a process of `workload` says of itself, over `changes` by attribute, dots as underscores doubled."""
    found: dict[str, Any] = {
        semconv.SERVICE_NAME: workload,
        semconv.WORKLOAD_NAME: workload,
        semconv.WORKLOAD_FAMILY: f"family-{workload}",
        semconv.RUN_ID: f"run-{workload}",
        semconv.RUN_ATTEMPT: 0,
        semconv.HOST_NAME: "node-1",
        semconv.HW_NAME: GPU,
        semconv.HW_ID: f"GPU-{workload}",
        semconv.DIST_RANK: 0,
        semconv.DIST_WORLD_SIZE: 1,
    }
    return found | {name.replace("__", "."): value for name, value in changes.items()}


def window(
    number: int, of: Mapping[str, Any], end_unix_ns: int, *, mfu: float = 0.25, expected: float = 0.5
) -> dict[str, Any]:
    """One window of 30 s on a device of 1 TFLOP/s as OTLP JSON, `number` × 5 minutes before `end_unix_ns`."""
    start = end_unix_ns - number * 300 * 10**9
    available = 30e12
    return span(
        semconv.SPAN_WINDOW,
        of,
        start,
        30.0,
        {
            semconv.PHASE: "train",
            semconv.MODEL_FLOP: mfu * available,
            semconv.AVAILABLE_FLOP: available,
            semconv.EXPECTED_FLOP: expected * available,
            semconv.EXPECTED_AVAILABLE_FLOP: available,
            semconv.STEP_TIME: 30.0,
            semconv.STEP_DATA_TIME: 6.0,
            semconv.WINDOW_STEP_FIRST: 1000 - 30 * number,
            semconv.WINDOW_STEP_COUNT: 30,
            semconv.WINDOW_STEP_TIMED: 30,
            semconv.WINDOW_STEP_UNKNOWN: 0,
            semconv.WINDOW_STEP_UTILIZATIONS: [round(mfu * 1e4)] * 30,
            semconv.COUNT_COVERAGE: 1.0,
            semconv.PEAK_SOURCE: "calibrated",
            semconv.PEAK_DTYPE: "bfloat16",
        },
        number,
    )


def span(
    name: str, of: Mapping[str, Any], start_unix_ns: int, duration_s: float, found: Mapping[str, Any], number: int = 0
) -> dict[str, Any]:
    """One span as OTLP JSON; its ids are of what it is, the same in every process."""
    key = json.dumps([name, sorted(of.items()), number])
    digits = "".join(f"{sum(ord(c) * (p + seed) for p, c in enumerate(key, 1)) % 2**32:08x}" for seed in range(4))
    return {
        "resource": {"attributes": _attributes(of)},
        "scopeSpans": [
            {
                "scope": {},
                "spans": [
                    {
                        "traceId": digits,
                        "spanId": digits[:16],
                        "name": name,
                        "kind": 1,
                        "startTimeUnixNano": str(start_unix_ns),
                        "endTimeUnixNano": str(start_unix_ns + round(duration_s * 1e9)),
                        "attributes": _attributes(found),
                    }
                ],
            }
        ],
    }


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue" if isinstance(value, float) else "stringValue": value}


def _bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}
