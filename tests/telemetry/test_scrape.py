"""The port that Prometheus scrapes: real requests, read by prometheus_client's parsers and by promtool."""

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from mfu_sdk import naming, semconv
from mfu_sdk.errors import MissingDependencyError
from mfu_sdk.export import scrape
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.run import opening
from mfu_sdk.settings import Settings
from mfu_sdk.testing import leaked_hooks

from .conftest import DRIFT, EPOCH_NS

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def opened(identity, free_port):
    """Opens a run with a scrape port."""
    made = []

    def make(env=None, **changes):
        settings = Settings(recorder="off", prometheus_port=changes.pop("port", None) or free_port(), gen_ai="chat")
        who = dataclasses.replace(identity, **{"local_rank": 0, **changes})
        made.append(Telemetry.open(who, settings, env=env or {}, unix_ns=lambda: EPOCH_NS))
        return made[-1], f"http://127.0.0.1:{settings.prometheus_port + who.local_rank}/metrics"

    yield make
    for telemetry in made:
        # What a collector has not taken is not waited for.
        assert telemetry.stop(0.1) or telemetry.stop(120.0)
    assert leaked_hooks() == []


def get(url, accept=""):
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def samples(text, parse=plain_text):
    """Series to [(labels but the scope's, value)]."""
    found = {}
    for family in parse(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if not name.startswith("otel_scope_")}
            found.setdefault(sample.name, []).append((labels, sample.value))
    return found


def told(telemetry, step):
    """All that a run can tell in metrics."""
    telemetry.step(step(0, device_s=0.5, batch_feasible=16.0))
    telemetry.step(step(1, duration_s=2.0))
    telemetry.overhead(0.25)
    telemetry.drift(DRIFT)
    telemetry.drift_scores({"train": 0.5})
    request = InferenceRecord("handle", EPOCH_NS, 0.5, 1, 1, "cached", 3, 1, 1, time_to_first_token_s=0.1)
    telemetry.inference(dataclasses.replace(request, time_per_output_token_s=0.02))


@pytest.mark.parametrize(
    ("accept", "content", "parse"),
    [("", "text/plain", plain_text), (OPENMETRICS, "application/openmetrics-text", open_metrics)],
    ids=["text", "openmetrics"],
)
def test_a_scrape(opened, step, accept, content, parse):
    """Everything that was recorded before a scrape is in it, in the form that was asked for, under registered names."""
    telemetry, url = opened()
    told(telemetry, step)
    kind, text = get(url, accept)
    assert kind.startswith(content)
    found = samples(text, parse)
    phase, held = {"mfu_phase": "train"}, {"mfu_phase": "train", "mfu_peak_dtype": "float32"}
    assert found["mfu_step_count_total"] == [(phase, 2.0)]
    assert found["mfu_model_flop_total"] == [(held, 80.0)]
    assert found["mfu_available_flop_total"] == [(held, 300.0)]
    assert found["mfu_utilization_ratio"] == [(held, 0.4)]
    assert found["mfu_peak_flop_rate_per_second"] == [(held, 100.0)]
    assert found["mfu_batch_fill_ratio"] == [(phase, 0.125)]
    assert found["mfu_run_info"] == [({}, 1.0)]
    assert ({"mfu_sdk_thread": "step"}, 0.25) in found["mfu_sdk_overhead_seconds_total"]
    assert ({**phase, "mfu_step_component": "total"}, 3.0) in found["mfu_step_time_seconds_total"]
    assert found["mfu_step_duration_seconds_sum"] == [(phase, 3.0)]
    buckets = {labels["le"]: value for labels, value in found["mfu_step_duration_seconds_bucket"]}
    assert (buckets["0.75"], buckets["1.0"], buckets["1.5"], buckets["2.0"], buckets["+Inf"]) == (0, 1, 1, 2, 2)
    assert "gen_ai_server_request_duration_seconds_bucket" in found
    ((target, _),) = found["target_info"]
    assert (target["mfu_run_id"], target["mfu_dist_rank"]) == ("run-7", "3")
    assert found.keys() <= naming.all_series()
    assert {name for series in found.values() for labels, _ in series for name in labels} <= (
        naming.labels() | {"telemetry_sdk_language", "telemetry_sdk_name", "telemetry_sdk_version"}
    )


def test_every_series(opened, step):
    """A run that tells all there is has every series that there can be, but that of drops."""
    telemetry, url = opened()
    told(telemetry, step)
    # Nothing was dropped, and nothing calibrated in the run.
    assert naming.all_series() - samples(get(url)[1]).keys() == {"mfu_sdk_dropped_total", "mfu_peak_ratio"}


def test_beside_a_collector_that_hangs(opened, collector, step):
    """A collector that never answers keeps no scrape waiting, and differences sent to it are totals here."""
    collector.hung = True
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
        "OTEL_METRIC_EXPORT_INTERVAL": "1",
    }
    telemetry, url = opened(env)
    for index in range(3):
        telemetry.step(step(index))
        assert samples(get(url)[1])["mfu_step_count_total"][0][1] == index + 1
    collector.let_go()


def test_totals_go_on(opened, collector, step):
    """What was sent as differences is not taken back from the totals."""
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
    }
    telemetry, url = opened(env)
    for index in range(3):
        telemetry.step(step(index))
        assert telemetry.flush(120.0)
    assert collector.points()["mfu.step.count"][0][1] == 1.0
    assert samples(get(url)[1])["mfu_step_count_total"][0][1] == 3.0


def test_it_closes_with_the_run(opened, step, summary):
    """After the run nobody listens, and the port is free for the next."""
    telemetry, url = opened()
    telemetry.step(step(0))
    port = telemetry._lanes[-1].pipeline.server.port
    assert get(url)[0].startswith("text/plain")
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(url)
    again, url = opened(port=port)
    again.step(step(0))
    assert "mfu_step_count_total" in get(url)[1]


def test_a_port_that_is_taken(opened, step, caplog):
    """One warning says what names another; the run goes on, and so does the one that has it."""
    first, url = opened()
    port = first._lanes[-1].pipeline.server.port
    second, _ = opened(port=port)
    assert f"127.0.0.1:{port} cannot be listened on" in caplog.text
    assert "MFU_PROMETHEUS_PORT" in caplog.text
    second.step(step(0))
    assert second.flush(120.0)
    first.step(step(0))
    assert samples(get(url)[1])["mfu_step_count_total"][0][1] == 1.0


def test_ranks_of_a_host(opened, free_port, step):
    """Each local rank has the next port."""
    base = free_port()
    for local_rank in range(2):
        telemetry, url = opened(port=base, local_rank=local_rank, rank=local_rank)
        telemetry.step(step(0))
        assert url.endswith(f":{base + local_rank}/metrics")
        assert samples(get(url)[1])["target_info"][0][0]["mfu_dist_rank"] == str(local_rank)


def test_beyond_the_last_port(opened, caplog):
    """A rank whose port does not exist is told so."""
    opened(port=65535, local_rank=1)
    assert "127.0.0.1:65536 cannot be listened on" in caplog.text


@pytest.mark.parametrize(
    ("host", "served"),
    [("localhost:9464", True), ("[::1]:9464", True), ("127.0.0.1", True), ("evil.example:9464", False), ("", False),
     ("[::", False)],
)  # fmt: skip
def test_by_its_own_name(opened, host, served):
    """On loopback a request that names another host is refused: a web page's name may have been pointed here."""
    telemetry, _ = opened()
    port = telemetry._lanes[-1].pipeline.server.port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.putrequest("GET", "/metrics", skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status == (200 if served else 403)
    connection.close()


def test_other_paths(opened):
    """There is one page."""
    _, url = opened()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(url.replace("/metrics", "/"))


def test_a_thread_that_does_not_answer(opened, monkeypatch):
    """A scrape is told so in the end; it does not wait for good."""
    monkeypatch.setattr(scrape, "ANSWER_S", 0.01)
    telemetry, url = opened()
    telemetry._lanes[-1].worker._shut = True
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(url)


def test_off(identity, free_port, monkeypatch):
    """No port, no telemetry; OTEL_SDK_DISABLED stops a scrape as it stops all; without the extra there is an error."""
    assert Telemetry.open(identity, Settings(), env={}) is None
    settings = Settings(prometheus_port=free_port())
    assert Telemetry.open(identity, settings, env={"OTEL_SDK_DISABLED": "true"}) is None
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mfu-sdk\[prometheus\]'"):
        Telemetry.open(identity, settings, env={})


def test_a_monitor_opens_it(identity, free_port):
    """A port alone is enough for a run to have telemetry: no collector has to be named."""
    found = opening._telemetry(identity, Settings(recorder="off", prometheus_port=free_port()))
    assert found is not None
    found.stop(120.0)


PROGRAM = """
import os, sys, time, urllib.request
sys.path.insert(0, sys.argv[1])
from conftest import EPOCH_NS, IDENTITY, SUMMARY, make_step
from dataclasses import replace
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.settings import Settings
telemetry = Telemetry.open(replace(IDENTITY, local_rank=0), Settings.from_env(), unix_ns=lambda: EPOCH_NS)
assert "prometheus_client" not in sys.modules
telemetry.step(make_step(0))
url = f"http://127.0.0.1:{sys.argv[2]}/metrics"
assert b"mfu_step_count_total" in urllib.request.urlopen(url, timeout=120).read()
gate, open_gate = os.pipe()
pid = os.fork()
if pid == 0:
    telemetry.step(make_step(1))
    telemetry.close(SUMMARY)
    os.close(open_gate)
    os.read(gate, 1)
    sys.exit(0)
line = [line for line in urllib.request.urlopen(url, timeout=120).read().decode().splitlines()
        if line.startswith("mfu_step_count_total")]
assert line[0].endswith(" 1.0"), line
telemetry.close(SUMMARY)
assert telemetry.flush(120.0)
# The child lives; the port is free all the same.
again = Telemetry.open(replace(IDENTITY, local_rank=0), Settings.from_env(), unix_ns=lambda: EPOCH_NS)
assert again is not None
again.step(make_step(0))
assert b"mfu_step_count_total" in urllib.request.urlopen(url, timeout=120).read()
os.close(open_gate)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_fork(free_port):
    """A forked child neither answers nor keeps the port; a program whose run is open ends at once, and says nothing."""
    port = str(free_port())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, Path(__file__).parent, port],
        capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"MFU_PROMETHEUS_PORT": port, "MFU_RECORDER": "off"},
    )  # fmt: skip
    assert (done.stderr, done.returncode) == ("", 0)


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "unit", "series"),
    [
        ("mfu.model.flop", "counter", "{flop}", ("mfu_model_flop_total",)),
        ("mfu.step.time", "counter", "s", ("mfu_step_time_seconds_total",)),
        ("mfu.peak.flop_rate", "gauge", "{flop}/s", ("mfu_peak_flop_rate_per_second",)),
        ("mfu.batch.fill_ratio", "gauge", "1", ("mfu_batch_fill_ratio",)),
        ("mfu.expected", "gauge", "1", ("mfu_expected_ratio",)),
        ("a.rate", "gauge", "By/s", ("a_rate_bytes_per_second",)),
        ("a..b-c", "gauge", "", ("a_b_c",)),
        ("a.b", "histogram", "1", ("a_b_bucket", "a_b_count", "a_b_sum")),
        ("a.b", "histogram", "s", ("a_b_seconds_bucket", "a_b_seconds_count", "a_b_seconds_sum")),
    ],
)
def test_names(name, kind, unit, series):
    """By the compatibility specification: units in words before what the kind appends, annotations left out."""
    assert naming.series(semconv.Metric(name, kind, unit, "")) == series


def test_names_are_different():
    """No two metrics become one series, and no two attributes one column or label."""
    every = [each for metric in semconv.METRICS.values() for each in naming.series(metric)]
    assert len(every) == len(set(every))
    assert len(naming.columns()) == len(semconv.ATTRIBUTES) == len(set(map(naming.label, semconv.ATTRIBUTES)))


# --- Prometheus itself ---------------------------------------------------------------------------------------------


def debian(program):
    found = shutil.which(program)
    assert found, f"{program} is missing: `make test-services` installs Debian's prometheus"
    return found


@pytest.mark.services
def test_promtool(opened, step):
    """Prometheus' own checker finds no fault with a scrape."""
    telemetry, url = opened()
    told(telemetry, step)
    checked = subprocess.run(
        [debian("promtool"), "check", "metrics"],
        input=get(url)[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (checked.stderr, checked.returncode) == ("", 0)


@pytest.mark.services
def test_prometheus(opened, step, free_port, tmp_path):
    """Prometheus scrapes a run, and fleet MFU is a query over its counters: 40 of 100 FLOPs a step."""
    telemetry, url = opened()
    for index in range(4):
        telemetry.step(step(index))
    listen = f"127.0.0.1:{free_port()}"
    target = url.removeprefix("http://").removesuffix("/metrics")
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: 100ms, scrape_timeout: 100ms}}\n"
        f"scrape_configs: [{{job_name: mfu, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    process = subprocess.Popen(
        [debian("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
         f"--web.listen-address={listen}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ratio = "sum(mfu_model_flop_total) / sum(mfu_available_flop_total)"
        joined = 'mfu_step_count_total * on(job, instance) group_left(mfu_run_id) target_info{mfu_run_id="run-7"}'
        assert [asked(listen, query) for query in (ratio, joined)] == [0.4, 4.0]
    finally:
        process.terminate()
        process.wait(120)


def asked(listen, query):
    """The value of a query, once there is one."""
    url = f"http://{listen}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    patience, until_s = threading.Event(), time.monotonic() + 60
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError):
            if result := json.loads(get(url)[1])["data"]["result"]:
                return float(result[0]["value"][1])
        patience.wait(0.05)
    raise AssertionError(f"{query}: nothing within a minute")
