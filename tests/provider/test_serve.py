"""The daemon: a real process on loopback, its page, its signals and its refusals."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mfu_sdk import semconv
from mfu_sdk.errors import ConfigurationError, PortInUseError
from mfu_sdk.provider import report
from mfu_sdk.provider.serve import Server

T0 = 1_780_000_200 * 10**9
FREE = ("127.0.0.1", 0)
FINGERPRINT = "00ff00ff00ff00ff"


def request_of(tenant_flop: float) -> bytes:
    made = ExportTraceServiceRequest()
    group = made.resource_spans.add()
    group.resource.attributes.add(key=semconv.CONFIG_FINGERPRINT).value.string_value = FINGERPRINT
    group.resource.attributes.add(key=semconv.WORKLOAD_NAME).value.string_value = f"gpt-{tenant_flop:g}"
    span = group.scope_spans.add().spans.add(
        name=semconv.SPAN_WINDOW,
        trace_id=os.urandom(16),
        span_id=os.urandom(8),
        start_time_unix_nano=T0 - 60 * 10**9,
        end_time_unix_nano=T0 - 30 * 10**9,
    )
    for key, value in ((semconv.MODEL_FLOP, tenant_flop), (semconv.AVAILABLE_FLOP, 4.0), (semconv.STEP_TIME, 30.0)):
        span.attributes.add(key=key).value.double_value = value
    return made.SerializeToString()


@dataclass
class Running:
    """A server in a thread; `get` returns (status, headers, body)."""

    server: Server

    @property
    def web(self) -> str:
        host, port = self.server.web_address
        return f"http://{host}:{port}"

    def send(self, flop: float, token: str | None) -> None:
        host, port = self.server.http_address
        headers = {"Content-Type": "application/x-protobuf"} | _bearer(token)
        request = urllib.request.Request(f"http://{host}:{port}/v1/traces", request_of(flop), headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            assert response.status == 200

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], str]:
        request = urllib.request.Request(self.web + path, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, dict(response.headers), response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read().decode()


def _bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _basic(token: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anyone:{token}".encode()).decode()}


def _serving(server: Server) -> Iterator[Running]:
    ready = threading.Event()
    serving = threading.Thread(target=server.serve_until_stopped, args=(lambda addresses: ready.set(),))
    serving.start()
    try:
        assert ready.wait(120)
        yield Running(server)
    finally:
        server.stop()
        serving.join(120)
    assert not serving.is_alive()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with tokens for the tenants acme (a) and globex (g) and an operator (o), one window of each tenant."""
    home = tmp_path_factory.mktemp("guarded")
    (home / "tokens").write_text("tenants: {acme: [{token: a}], globex: [{token: g}]}\noperators: {ops: [{token: o}]}")
    server = Server(home / "data", http=FREE, web=FREE, tokens=home / "tokens", now_unix_ns=lambda: T0)
    for running in _serving(server):
        running.send(1.0, "a")
        running.send(3.0, "g")
        yield running


def test_who_sees_what(guarded: Running) -> None:
    """A tenant sees itself, an operator all and any one."""

    def mfu(query: str, token: str) -> float:
        status, headers, body = guarded.get(f"/api/report{query}", _bearer(token))
        assert (status, headers["content-type"]) == (200, "application/json")
        found: float = json.loads(body)["fleet"]["mfu"]
        return found

    assert [mfu("?since=1h", token) for token in "ago"] == [0.25, 0.75, 0.5]
    assert mfu("?since=1h&tenant=globex", "o") == 0.75
    assert mfu("?since=1h&tenant=acme", "a") == 0.25
    assert json.loads(guarded.get("/api/report?since=10s", _bearer("o"))[2])["fleet"]["mfu"] is None


def test_baselines_are_ones_own(guarded: Running) -> None:
    """A tenant is told what its own runs of a configuration reach, an operator what all do."""

    def reached(query: str, token: str) -> list[float]:
        status, headers, body = guarded.get(f"/api/baseline?{query}", _bearer(token))
        assert (status, headers["content-type"]) == (200, "application/json")
        told = json.loads(body)
        assert told["fingerprint"] == FINGERPRINT
        return [each["middle_mfu"] for each in told["reached"]]

    asked = f"fingerprint={FINGERPRINT}"
    assert [reached(asked, token) for token in "ago"] == [[0.25], [0.75], [0.5]]
    assert reached(asked + "&tenant=globex", "o") == [0.75]
    assert reached(asked + "&since=10s", "o") == []
    assert guarded.get(f"/api/baseline?{asked}&tenant=acme", _bearer("g"))[0] == 403
    assert guarded.get(f"/api/baseline?{asked}")[0] == 401


@pytest.mark.parametrize("query", ["", "?fingerprint=", "?fingerprint=00FF", "?fingerprint=' OR 1=1 --"])
def test_no_fingerprint(guarded: Running, query: str) -> None:
    """What is none is refused with the rule."""
    status, _, body = guarded.get("/api/baseline" + query.replace(" ", "%20"), _bearer("o"))
    assert status == 400
    assert "must be 16 hexadecimal digits" in body


def test_a_tenant_asks_for_another(guarded: Running) -> None:
    """A tenant that asks for another is refused, on the page and in JSON."""
    for path in ("/", "/api/report"):
        status, _, body = guarded.get(f"{path}?tenant=globex", _bearer("a"))
        assert (status, body) == (403, "acme sees acme only; ask without `tenant`\n")


def test_no_token_no_page(guarded: Running) -> None:
    """Without a token, or with a wrong one, a browser is asked for it and told nothing."""
    for headers in ({}, _bearer("x"), _basic("x"), {"Authorization": "Basic ???"}, {"Authorization": "Digest a"}):
        for path in ("/", "/api/report"):
            status, answered, body = guarded.get(path, headers)
            assert (status, answered["www-authenticate"]) == (401, 'Basic realm="mfu", charset="UTF-8"')
            assert "gpt" not in body


def test_page_for_a_browser(guarded: Running) -> None:
    """A browser gives the token as the password; the page may load and run nothing, and be kept or framed nowhere."""
    status, headers, body = guarded.get("/?since=1h", _basic("o"))
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "50.0 %" in body
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; script-src 'self';")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_bad_range(guarded: Running) -> None:
    """A bad range is the client's fault, and told in one line."""
    status, _, body = guarded.get("/api/report?since=soon", _bearer("o"))
    assert status == 400
    assert body.startswith("since='soon': must be an age such as")


def test_health(guarded: Running) -> None:
    """Health is told to anyone, and nothing else is."""
    assert guarded.get("/healthz")[0] == 200
    assert guarded.get("/v1/traces")[0] == 404


def test_report_from_url(guarded: Running) -> None:
    """`from_url` gets what the page shows, and passes on why it was refused."""
    found = report.from_url(guarded.web + "/", "o", since="1h")
    assert (found.fleet.mfu, len(found.workloads)) == (0.5, 2)
    assert report.from_url(guarded.web, "o", since="1h", tenant="acme").fleet.mfu == 0.25
    for token, tenant, reason in (
        (None, None, "401: no known token: .*"),
        ("x", None, "401: no known token: .*"),
        ("a", "globex", "403: acme sees acme only; .*"),
    ):
        with pytest.raises(ConfigurationError, match=rf"answered {reason}; name the file of .*: --token-file FILE$"):
            report.from_url(guarded.web, token, tenant=tenant)
    with pytest.raises(ConfigurationError, match=r"answered 400: since='soon'.*00Z$"):
        report.from_url(guarded.web, "o", since="soon")


def test_port_in_use(tmp_path: Path) -> None:
    """A taken address is named before anything is opened."""
    with socket.create_server(FREE) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"^127\.0\.0\.1:{port}: is taken by another program; stop it, or"):
            Server(tmp_path / "data", http=FREE, web=("127.0.0.1", port))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_beyond_loopback(tmp_path: Path, host: str) -> None:
    """Without a tokens file nothing but loopback is listened on."""
    for addresses in ({"http": (host, 0)}, {"web": (host, 0)}):
        with pytest.raises(
            ConfigurationError, match="without a tokens file only loopback is served; give --tokens FILE"
        ):
            Server(tmp_path / "data", **{"http": FREE, "web": FREE, **addresses})


def test_not_of_this_machine(tmp_path: Path) -> None:
    """An address that this machine does not have, or a port that is none, is refused."""
    (tmp_path / "tokens").write_text("tenants: {acme: [{token: a}]}")
    for address, message in (
        (("192.0.2.1", 0), r"192\.0\.2\.1:0: cannot be listened on \(.*\); give an address of this machine"),
        (("127.0.0.1", 70_000), "127.0.0.1:70000: a port must lie between 0 and 65535"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Server(tmp_path / "data", http=address, web=FREE, tokens=tmp_path / "tokens")


# --- a process of its own ------------------------------------------------------------------------------------------

DAEMON = """
import sys
from mfu_sdk.provider.serve import serve
def ready(addresses):
    print(addresses.http[1], addresses.web[1], flush=True)
serve(sys.argv[1], http=("127.0.0.1", 0), web=("127.0.0.1", 0), on_ready=ready)
"""


def _status(url: str, host: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=120) as response:
            found: int = response.status
    except urllib.error.HTTPError as error:
        with error:
            found = error.code
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_daemon(tmp_path: Path, number: signal.Signals) -> None:
    """A daemon without tokens serves loopback as tenant local, leaves cleanly when told to, and its store is whole."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    daemon = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", DAEMON, tmp_path / "data"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    try:
        assert daemon.stdout is not None
        http, web = (int(port) for port in daemon.stdout.readline().split())
        asked = {
            path_and_host: _status(f"http://127.0.0.1:{web}{path_and_host[0]}", path_and_host[1])
            for path_and_host in (
                ("/api/report", f"localhost:{web}"),
                ("/", "127.0.0.1"),
                ("/healthz", "[::1]:80"),
                # A web page elsewhere whose name points here.
                ("/api/report", "evil.example"),
            )
        }
        assert list(asked.values()) == [200, 200, 200, 403]
        body = ExportTraceServiceRequest().SerializeToString()
        send = urllib.request.Request(
            f"http://127.0.0.1:{http}/v1/traces", body, {"Content-Type": "application/x-protobuf"}
        )
        with urllib.request.urlopen(send, timeout=120) as response:
            assert response.status == 200
        daemon.send_signal(number)
        out, err = daemon.communicate(timeout=120)
    finally:
        daemon.kill()
        daemon.communicate()
    assert (daemon.returncode, out, err) == (0, "", "")
    assert list(temporary.iterdir()) == []
    again = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from mfu_sdk.provider import report;"
            " print(report.from_data_dir(sys.argv[1], now_unix_ns=1_780_000_200 * 10**9).fleet.mfu)",
            tmp_path / "data",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert again.stdout == "None\n"


def test_no_torch() -> None:
    """The provider's half runs without torch and without the tenant's half."""
    code = (
        "import sys, mfu_sdk.provider.serve;"
        " print([m for m in sys.modules if m.split('.')[0] in ('torch', 'triton')"
        " or m.startswith(('mfu_sdk.run', 'mfu_sdk.export', 'mfu_sdk.counting'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"
