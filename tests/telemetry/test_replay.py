"""`mfu replay`: what killed processes leave behind arrives once, under the ids that they would have used."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import rotel

from mfu_sdk.errors import DeliveryError
from mfu_sdk.export import flight
from mfu_sdk.export.destination import Destination
from mfu_sdk.export.identity import Ids, window_slot
from mfu_sdk.export.replay import LAST_STEPS, Missing, replay
from mfu_sdk.provider import report
from mfu_sdk.provider.serve import Server

from .conftest import EPOCH_NS, IDENTITY, attributes_of, make_step
from .test_flight import image

IDS = Ids.of(IDENTITY)
SLOT = window_slot(EPOCH_NS)

PROGRAM = """
    import os, signal, sys, threading, time
    sys.path.insert(0, sys.argv[1])
    from conftest import EPOCH_NS, IDENTITY, SUMMARY, make_step
    from mfu_sdk.export.telemetry import Telemetry
    from mfu_sdk.settings import Settings
    telemetry = Telemetry.open(IDENTITY, Settings.from_env(), unix_ns=lambda: EPOCH_NS)
"""


@pytest.fixture
def recorder_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("MFU_RECORDER_DIR", str(tmp_path / "recorder"))
    return tmp_path / "recorder"


@pytest.fixture
def die(request, recorder_dir, monkeypatch):
    """Runs PROGRAM and `body` in a process that must end as `status` says: the files that it leaves."""

    def run(body, *, url, status=-signal.SIGKILL, spans="auto"):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("MFU_SPANS", spans)
        program = textwrap.dedent(PROGRAM) + textwrap.dedent(body)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, str(request.path.parent)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return sorted(recorder_dir.iterdir())

    return run


def mfu_replay(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "mfu_sdk.cli", "replay", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False, env=os.environ | env,
    )  # fmt: skip


def sent_ids(collector):
    """How often each span was sent, by name and id."""
    return Counter(
        (span.name, span.span_id.hex())
        for request in collector.trace_requests()
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    )


DEATHS = {
    "sigkill": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "os._exit": ("os._exit(3)", 3),
    "abort": ("os.abort()", -signal.SIGABRT),
}


@pytest.mark.parametrize("death", DEATHS)
def test_the_last_step_survives(die, collector, refused, death):
    """Killed right after a step: every step is there, the last one too, and arrives under its own ids, once."""
    how, status = DEATHS[death]
    body = f"""
        for index in range(50):
            telemetry.step(make_step(index, start_unix_ns=EPOCH_NS + index * 10**8))
        {how}
    """
    (left,) = die(body, url=refused, status=status, spans="all")
    first = mfu_replay(left, "--otlp", collector.url)
    assert (first.returncode, first.stderr) == (0, "")
    assert re.fullmatch(r".*\.mfurec: delivered 50 steps in [12] windows of run run-7; removed\n", first.stdout)
    windows = collector.spans("mfu.window")
    assert {window.trace_id for window in windows} == {IDS.window_trace(SLOT).to_bytes(16, "big")}
    # Steps that the export thread had not come to have a window of their own.
    assert IDS.window_span(SLOT, make_step(0)).to_bytes(8, "big") in {window.span_id for window in windows}
    for name, each in (("mfu.window.step.count", 1), ("mfu.model.flop", 40.0), ("mfu.available.flop", 100.0)):
        assert sum(attributes_of(window.attributes)[name] for window in windows) == 50 * each
    assert {span.span_id for span in collector.spans("mfu.step")} == {
        IDS.step_span(make_step(index)).to_bytes(8, "big") for index in range(50)
    }
    assert collector.spans("mfu.run") == []
    assert set(sent_ids(collector).values()) == {1}
    assert not left.exists()
    again = mfu_replay(left, "--otlp", collector.url)
    assert again.returncode == 2
    assert "does not exist" in again.stderr


def test_only_what_is_missing(die, collector):
    """A window that arrived before the end is not sent again; the one that was open goes under the id it had."""
    body = """
        for index in range(10):
            telemetry.step(make_step(index))
        assert telemetry.flush(120.0)
        for index in range(10, 20):
            telemetry.step(make_step(index))
        telemetry._workers[0]._wake.set()
        while not telemetry.recorder._joined:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    (left,) = die(body, url=collector.url, spans="windows")
    assert len(collector.spans("mfu.window")) == 1
    done = mfu_replay(left, "--otlp", collector.url)
    assert (done.returncode, done.stderr) == (0, "")
    # The export thread had come to the tenth step at least; those that it had not are in a window of their own.
    windows = {span.span_id: attributes_of(span.attributes) for span in collector.spans("mfu.window")}
    assert windows[IDS.window_span(SLOT, make_step(10)).to_bytes(8, "big")]["mfu.window.step.first"] == 10
    assert sum(window["mfu.window.step.count"] for window in windows.values()) == 20
    assert sum(window["mfu.model.flop"] for window in windows.values()) == 20 * 40.0
    assert set(sent_ids(collector).values()) == {1}


def test_all_arrived(die, collector):
    """A process that is killed after everything had arrived leaves a file with nothing in it to send."""
    (left,) = die(
        """
        telemetry.step(make_step(0))
        assert telemetry.flush(120.0)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        url=collector.url,
    )
    before = len(collector.requests)
    done = mfu_replay(left, "--otlp", collector.url)
    assert (done.stdout, done.returncode) == (f"{left}: nothing was missing; removed\n", 0)
    assert len(collector.requests) == before


def test_a_closed_run(die, collector, refused):
    """A run that ended in order while its collector was away: the run's span comes along, as it would have been."""
    (left,) = die(
        """
        telemetry.step(make_step(0))
        telemetry.close(SUMMARY)
        telemetry.stop(0.2)
        """,
        url=refused,
        status=0,
    )
    done = mfu_replay(left, "--otlp", collector.url)
    assert done.stdout == f"{left}: delivered 1 steps in 1 windows and the end of run run-7; removed\n"
    (run,) = collector.spans("mfu.run")
    assert run.span_id == IDS.run_span().to_bytes(8, "big")
    assert (run.start_time_unix_nano, run.end_time_unix_nano) == (EPOCH_NS, EPOCH_NS)
    assert attributes_of(run.attributes) == {
        "mfu.utilization": 0.4,
        "mfu.hardware.utilization": 0.5,
        "mfu.expected": 0.8,
        "mfu.model.flop": 40.0,
        "mfu.hardware.flop": 50.0,
        "mfu.available.flop": 100.0,
        "mfu.peak.flop_rate": 100.0,
        "mfu.peak.source": "calibrated",
        "mfu.peak.dtype": "float32",
        "mfu.count.coverage": 1.0,
        "mfu.count.uncounted": [],
        "mfu.convention": "exact",
        "mfu.step.time": 1.0,
        "mfu.token.count": 16,
        "mfu.run.step.count": 3,
        "mfu.run.overhead": 0.25,
    }


def test_the_same_window_as_alive(die, collector, refused):
    """What is replayed is, attribute for attribute, what a living process sends."""
    body = """
        for index in range(7):
            telemetry.step(make_step(index, tokens=None if index == 3 else 16, profiled=index == 4))
    """
    die(body + "\n        assert telemetry.flush(120.0)\n        os._exit(1)", url=collector.url, status=1, spans="all")
    alive = {span.span_id: span for span in collector.spans()}
    collector.requests.clear()
    body += """
        while sum(len(steps) for _, steps in telemetry.recorder._joined.values()) < 7:
            telemetry._workers[0]._wake.set()
            time.sleep(0.001)
        os._exit(1)
    """
    *_, left = sorted(die(body, url=refused, status=1, spans="all"), key=lambda path: path.stat().st_mtime_ns)
    assert mfu_replay(left, "--otlp", collector.url).returncode == 0
    replayed = {span.span_id: span for span in collector.spans()}
    assert replayed == alive
    assert len(replayed) == 8


def test_a_monitored_loop(recorder_dir, collector, refused, monkeypatch):
    """A user's loop under `mfu.monitor`: what lies in the file is what `on_step` was told, to the last digit."""
    program = """
        import dataclasses, json, os, signal, sys
        import torch
        import mfu_sdk as mfu
        from mfu_sdk.records import Peaks, Rate
        memory = Rate(1e10, 1e10, 1e10, "user", 0.0)
        peaks = Peaks("cpu", {}, {"float32": Rate(1e12, 9e11, 1.1e12, "user", 0.0)}, memory, None, {})
        model = torch.nn.Linear(64, 32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        told = lambda record: print(json.dumps(dataclasses.asdict(record)), flush=True)
        with mfu.monitor(model, name="train", peaks=peaks, on_step=told) as run:
            for index, batch in enumerate(run.batches([torch.randn(8 + 8 * (n % 2), 64) for n in range(12)])):
                with run.step(tokens=batch.numel(), phase="eval" if index == 7 else "train"):
                    model(batch).sum().backward()
                    optimizer.step()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", refused)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    (left,) = recorder_dir.iterdir()
    found = flight.read(left.read_bytes(), "x")
    assert len(told) == 12
    for entry, record in zip(found.entries, told, strict=True):
        for name, value in record.items():
            assert getattr(entry.step, name) == (pytest.approx(value, rel=1e-15) if type(value) is float else value)
    assert found.identity["mfu.workload.name"] == "train"
    assert mfu_replay(left, "--otlp", collector.url).returncode == 0
    windows = [attributes_of(span.attributes) for span in collector.spans("mfu.window")]
    counted = [record for record in told if record["count_source"] != "measured" and record["model_flops"]]
    assert sum(window.get("mfu.model.flop", 0.0) for window in windows) == sum(r["model_flops"] for r in counted)


# --- which windows -------------------------------------------------------------------------------------------------


def spans_of(data):
    missing = Missing.of(flight.read(bytes(data), "x"))
    return missing, [span.name for span in missing.spans()]


def test_steps_that_no_window_had():
    """They open a window of their own: the one before may have arrived without them."""
    data = image([make_step(index) for index in range(6)], joined={1, 2, 3})
    missing, _ = spans_of(data)
    assert [(window.first.index, len(window.steps)) for window in missing.windows] == [(0, 3), (3, 3)]


def test_a_window_is_whole():
    """Where any step of a window is marked as arrived, all of it has: the marks were cut short."""
    data = image([make_step(index) for index in range(6)], joined={1, 2, 3}, arrived={1})
    missing, _ = spans_of(data)
    assert [[step.index for step in window.steps] for window in missing.windows] == [[3, 4, 5]]


def test_a_window_without_its_first_steps():
    """The ring has gone round over a window's first steps: the rest goes under the window's id."""
    steps = [make_step(index) for index in range(5)]
    data = image(steps, joined={1, 2, 3, 4, 5})
    data[flight.slot_at(1) : flight.slot_at(3)] = bytes(2 * flight.SLOT_BYTES)
    missing, _ = spans_of(data)
    (window,) = missing.windows
    assert IDS.window_span(SLOT, window.first) == IDS.window_span(SLOT, steps[0])
    assert [step.index for step in window.steps] == [2, 3, 4]


def test_the_last_steps_of_a_sample():
    """Of a run that samples, the last 64 steps get a span, without weight unless they were in the sample."""
    data = image([make_step(index, start_unix_ns=EPOCH_NS + index * 10**8) for index in range(200)], joined={1, 190})
    missing, names = spans_of(data)
    kept = [span.attributes for span in missing.spans() if span.name == "mfu.step"]
    assert [found["mfu.step.index"] for found in kept] == [0, *range(200 - LAST_STEPS, 200)]
    assert [found.get("mfu.sample.ratio") for found in kept] == [
        0.25 if found["mfu.step.index"] in (0, 189) else None for found in kept
    ]
    assert {found["mfu.sample.reason"] for found in kept} == {"periodic", "recorder"}
    # What sums are made of comes last, and is marked only then.
    assert names[-2:] == ["mfu.window", "mfu.window"]


# --- collectors ----------------------------------------------------------------------------------------------------


@pytest.fixture
def left(tmp_path):
    """A file with five steps that a killed process left."""
    path = tmp_path / "left.mfurec"
    path.write_bytes(image([make_step(index) for index in range(5)]))
    return path


def test_tried_again(left, collector):
    """A collector that cannot take it now is tried again when it asks to be, else after 1, 2 and 4 s."""
    collector.script = [(503, None), (429, "7"), (503, None)]
    slept = []
    found = replay(left, Destination(f"{collector.url}/v1/traces"), sleep=slept.append)
    assert (found.steps, found.windows, slept) == (5, 1, [1.0, 7.0, 4.0])
    assert len({request.body for request in collector.requests}) == 1


def test_a_collector_that_is_not_there(left, refused):
    """It is tried four times, then the file is kept for another day."""
    slept = []
    with pytest.raises(DeliveryError, match=r"did not take the spans in 4 tries \(.*\); the files are kept, try later"):
        replay(left, Destination(f"{refused}/v1/traces"), sleep=slept.append)
    assert slept == [1.0, 2.0, 4.0]
    assert Missing.of(flight.read(left.read_bytes(), "x")).entries


@pytest.mark.parametrize("status", [400, 401, 413])
def test_a_collector_that_refuses(left, collector, status):
    """Exit code 1 with the reason, at once; the file is kept for the right token."""
    collector.status = status
    done = mfu_replay(left, "--otlp", collector.url)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"refuses the spans (HTTP {status}" in done.stderr
    assert "check the URL and its token" in done.stderr
    assert len(collector.requests) == 1
    collector.status = 200
    assert mfu_replay(left, "--otlp", collector.url).returncode == 0
    assert not left.exists()


def test_partly_refused(left, collector):
    """What a collector takes in part is not sent again, as the protocol wants; exit code 1 says that some was lost."""
    collector.refuse_some(2)
    done = mfu_replay(left, "--otlp", collector.url)
    assert done.returncode == 1
    assert "the collector refused 2 spans for good" in done.stdout
    assert not left.exists()


def test_credentials_of_the_environment(left, collector):
    """Headers and compression are those of the environment; what turns a run's own export off does not matter here."""
    done = mfu_replay(
        left, "--otlp", collector.url, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20t0ken",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip", OTEL_TRACES_EXPORTER="none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (request,) = collector.requests
    assert (request.headers["Authorization"], request.headers["Content-Encoding"]) == ("Bearer t0ken", "gzip")


# --- wrong usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"#!/bin/sh", "is no flight recorder's file"),
        (bytes(image([]))[:8] + b"\x09\x00" + bytes(image([]))[10:], "has version 9 of the layout"),
    ],
)
def test_not_a_recorder(tmp_path, collector, content, told):
    """One line, exit code 2, and the file stays as it was."""
    path = tmp_path / "x.mfurec"
    path.write_bytes(content)
    done = mfu_replay(path, "--otlp", collector.url)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert told in done.stderr
    assert path.read_bytes() == content


def test_no_collector(left):
    """Without --otlp and without an endpoint in the environment nothing can be sent."""
    done = mfu_replay(left)
    assert done.returncode == 2
    assert "no collector is named; give --otlp URL or set MFU_PROVIDER_ENDPOINT" in done.stderr
    assert "must be an http or https URL" in mfu_replay(left, "--otlp", "collector:4317").stderr


def test_a_live_process(die, left, collector, refused, recorder_dir):
    """A living process's file is left alone, whatever else is delivered; alone it is an error."""
    body = f"""
        import subprocess
        telemetry.step(make_step(0))
        mine = str(telemetry.recorder.path)
        command = [sys.executable, "-m", "mfu_sdk.cli", "replay"]
        alone = subprocess.run([*command, mine, "--otlp", "{collector.url}"], capture_output=True, text=True)
        assert alone.returncode == 2, alone
        assert "a process has it open; wait until that has ended" in alone.stderr
        both = subprocess.run([*command, mine, "{left}", "--otlp", "{collector.url}"], capture_output=True, text=True)
        assert both.returncode == 0, both
        assert "left alone, a process has it open" in both.stdout
        os._exit(0)
    """
    (mine,) = die(body, url=refused, status=0)
    assert mine.stat().st_size == flight.FILE_BYTES
    assert sum(attributes_of(span.attributes)["mfu.window.step.count"] for span in collector.spans("mfu.window")) == 5


# --- real receivers ------------------------------------------------------------------------------------------------


ROTEL = Path(rotel.__file__).parent / "rotel-agent"


def test_through_a_collector(left, free_port, collector):
    """A real collector (rotel) takes a replay and passes it on whole."""
    port = free_port()
    agent = subprocess.Popen(
        [
            ROTEL, "start", "--otlp-http-endpoint", f"127.0.0.1:{port}", "--otlp-grpc-endpoint", "127.0.0.1:0",
            "--exporter", "otlp", "--otlp-exporter-endpoint", collector.url, "--otlp-exporter-protocol", "http",
            "--batch-timeout", "50ms",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        # It is tried until it listens.
        found = replay(left, Destination(f"http://127.0.0.1:{port}/v1/traces"), sleep=lambda _: time.sleep(0.5))
        assert found.steps == 5
        assert collector.wait_for(lambda: collector.spans("mfu.window") != [])
    finally:
        agent.terminate()
        agent.wait(120)
    (window,) = collector.spans("mfu.window")
    assert window.span_id == IDS.window_span(SLOT, make_step(0)).to_bytes(8, "big")
    attributes = attributes_of(window.attributes)
    assert attributes["mfu.window.step.durations"] == [1_000_000] * 5
    assert attributes["mfu.model.flop"] == 200.0


def test_the_provider_counts_it_once(left, tmp_path):
    """`mfu serve`'s receiver: a file replayed twice, as after a cut, is in its sums once."""
    copy = tmp_path / "copy.mfurec"
    recent = [make_step(index, start_unix_ns=NOW_NS + index * 10**9) for index in range(5)]
    left.write_bytes(image(recent))
    shutil.copy(left, copy)
    server = Server(
        tmp_path / "data", http=("127.0.0.1", 0), web=("127.0.0.1", 0), now_unix_ns=lambda: NOW_NS + 60 * 10**9
    )
    ready = threading.Event()
    serving = threading.Thread(target=server.serve_until_stopped, args=(lambda addresses: ready.set(),))
    serving.start()
    try:
        assert ready.wait(120)
        host, port = server.http_address
        for path in (left, copy):
            assert replay(path, Destination(f"http://{host}:{port}/v1/traces")).steps == 5
        rows = server._store.query(
            "SELECT count() AS spans, uniqExact(SpanId) AS ids FROM otel.otel_traces WHERE SpanName = 'mfu.window'"
        )
    finally:
        server.stop()
        serving.join(120)
    found = report.from_data_dir(
        tmp_path / "data", since="1h", until=None, tenant=None, now_unix_ns=NOW_NS + 60 * 10**9
    )
    assert json.loads(report.to_json(found))["fleet"]["model_flop"] == 5 * 40.0
    assert rows[0]["ids"] == 1


NOW_NS = 1_780_000_200 * 10**9
