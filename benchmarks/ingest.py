"""What a span costs the provider, from a request over HTTP until it is on disk and in the roll-ups, beside a collector.

Run: python benchmarks/ingest.py [-o FILE] [--spans N] [--rounds N]. It takes about three minutes.

- `mfu serve` is a process of its own with a store of its own; so is the peer, rotel (a collector in Rust), which
  decodes the same requests and throws them away: what receiving alone costs, with nothing stored.
- The client is a third process. It has every request ready before the clock runs, and sends over several connections
  that stay open. Its CPU time comes out of the same cores and is reported beside the server's.
- The requests are the SDK's own step spans, by its own encoder; each id is new, and so is each request's resource in
  one of 8 ranks. Afterwards the store is opened and its spans are counted, in the raw table and in the roll-up.
- cpu_us_per_span is the server's user and system time from the first request to the last answer, merges of parts in
  the background included. On a machine that others use, it is the figure to compare; spans_per_s is what was seen.
"""

import argparse
import contextlib
import dataclasses
import http.client
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import Resource
from telemetry import make

from mfu_sdk.export.encode import Envelope, encode
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.windows import Windows
from mfu_sdk.peak.device import processor_name
from mfu_sdk.provider.arrivals import Arrival, Arrivals, AttributeLimits, Stored
from mfu_sdk.provider.engine import Apart, Move, Parameter, Row
from mfu_sdk.provider.store import Store
from mfu_sdk.records import RunIdentity

SPANS, ROUNDS, CONNECTIONS, RANKS = 80_000, 3, 16, 8
SIZES = (512, 5_000)
STEP_NS = 2 * 10**6
WANTED_PER_S = 40_000
PACKAGES = ("mfu-sdk", "chdb-core", "opentelemetry-proto", "protobuf", "rotel", "starlette", "uvicorn")


def requests(run: str, spans: int, size: int) -> list[bytes]:
    """Requests of `size` step spans of the run `run`, by one rank after the other, `spans` in all."""
    made: list[bytes] = []
    start_unix_ns = time.time_ns() - 3600 * 10**9
    senders = []
    for rank in range(RANKS):
        identity = RunIdentity(run, 0, "bench", None, rank, rank, RANKS, "cuda", None, None, start_unix_ns)
        attributes = {
            "service.name": "bench", "telemetry.sdk.name": "opentelemetry", "telemetry.sdk.language": "python",
            "telemetry.sdk.version": "1.45.2", "telemetry.distro.name": "mfu-sdk", "host.name": f"node-{rank // 8}",
            "hw.name": "NVIDIA H100 80GB HBM3", "hw.id": f"GPU-{rank}", "mfu.run.id": run, "mfu.run.attempt": 0,
            "mfu.workload.name": "bench", "mfu.dist.rank": rank, "mfu.dist.local_rank": rank,
            "mfu.dist.world_size": RANKS, "mfu.config.fingerprint": "0123456789abcdef",
        }  # fmt: skip
        senders.append((Spans(identity), Windows(), Envelope(Resource(attributes))))
    for number in range(spans // size):
        names, windows, envelope = senders[number % RANKS]
        encoded = []
        for index in range(number // RANKS * size, (number // RANKS + 1) * size):
            record = dataclasses.replace(make(index), start_unix_ns=start_unix_ns + index * STEP_NS)
            window, _ = windows.add(record)
            encoded.append(encode(names.step(record, window, Kept("all", 1.0))))
        made.append(envelope.request(encoded))
    return made


# --- who sends -----------------------------------------------------------------------------------------------------


def send(pipe: Connection, run: str, spans: int, size: int) -> None:
    """The client: makes the requests, says so, is told where to, and says how long all of them took."""
    made = requests(run, spans, size)
    pipe.send(sum(map(len, made)))
    host, port = pipe.recv()
    waiting = iter(made)
    took: list[float] = []
    refused: list[str] = []
    lock = threading.Lock()

    def work() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=120)
        while True:
            with lock:
                body = next(waiting, None)
            if body is None:
                connection.close()
                return
            began = time.perf_counter()
            connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
            response = connection.getresponse()
            answer = response.read()
            took.append(time.perf_counter() - began)
            if response.status != 200 or b"\x08" in answer[:3]:
                refused.append(f"{response.status} {answer[:200]!r}")

    threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    before = time.process_time()
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send((time.perf_counter() - began, time.process_time() - before, took, refused))


# --- who receives --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Receiver:
    """A process that listens; `spans` tells what it stored, once it has ended."""

    process: subprocess.Popen[str]
    host: str
    port: int

    def cpu_s(self) -> float:
        """User and system time so far, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        """The most memory that it has held."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return round(int(text.split("VmHWM:")[1].split()[0]) / 1024, 1)


@contextlib.contextmanager
def provider(data: Path) -> Iterator[Receiver]:
    """`mfu serve` over `data`."""
    command = [sys.executable, "-m", "mfu_sdk.cli", "serve", "--data", str(data)]
    command += ["--http", "127.0.0.1:0", "--web", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            host, port = said.split("http://")[1].split(",")[0].rsplit(":", 1)
            yield Receiver(process, host, int(port))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


@contextlib.contextmanager
def black_hole(data: Path) -> Iterator[Receiver]:
    """rotel, which decodes what comes and throws it away."""
    from socket import socket

    import rotel

    ports = []
    for _ in range(2):
        with socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    command = [str(Path(rotel.__file__).parent / "rotel-agent"), "start", "--exporter", "blackhole"]
    command += ["--otlp-grpc-endpoint", f"127.0.0.1:{ports[0]}", "--otlp-http-endpoint", f"127.0.0.1:{ports[1]}"]
    command += ["--pid-file", str(data.with_suffix(".pid"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={}) as process:
        try:
            assert process.stdout is not None
            assert any("Starting Rotel" in line for line in process.stdout)
            drained = threading.Thread(target=process.stdout.read)
            drained.start()
            yield Receiver(process, "127.0.0.1", ports[1])
        finally:
            process.terminate()
            process.wait(30)
            drained.join()


RECEIVERS = {"mfu serve": provider, "rotel, black hole": black_hole}


# --- rounds --------------------------------------------------------------------------------------------------------


def one_round(receiver: Receiver, run: str, spans: int, size: int) -> dict[str, Any]:
    """All requests of one run, sent as fast as they are answered."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    client = context.Process(target=send, args=(theirs, run, spans, size), daemon=True)
    client.start()
    sent_bytes = ours.recv()
    before = receiver.cpu_s()
    ours.send((receiver.host, receiver.port))
    wall_s, client_cpu_s, took, refused = ours.recv()
    cpu_s = receiver.cpu_s() - before
    client.join()
    assert not refused, refused[:3]
    sent = spans // size * size
    return {
        "spans": sent,
        "bytes_per_span": sent_bytes / sent,
        "spans_per_s": sent / wall_s,
        "cpu_us_per_span": cpu_s / sent * 1e6,
        "client_cpu_us_per_span": client_cpu_s / sent * 1e6,
        "answer_median_ms": statistics.median(took) * 1e3,
    }


def measured(spans: int, rounds: int) -> dict[str, Any]:
    """Each receiver with each size of request; rounds of the receivers take turns."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        for size in SIZES:
            seen: dict[str, list[dict[str, Any]]] = {name: [] for name in RECEIVERS}
            stored: dict[str, Any] = {}
            with contextlib.ExitStack() as running:
                receivers = {
                    name: running.enter_context(open_receiver(Path(home) / f"{name[:3]}-{size}"))
                    for name, open_receiver in RECEIVERS.items()
                }
                # The first requests find caches cold and are left out.
                for name, receiver in receivers.items():
                    one_round(receiver, f"warm-{name}", size * RANKS, size)
                for number in range(rounds):
                    for name, receiver in receivers.items():
                        seen[name].append(one_round(receiver, f"run-{number}", spans, size))
                peak = {name: receiver.resident_mib() for name, receiver in receivers.items()}
            with Store(Path(home) / f"mfu-{size}") as store:
                [stored] = store.query(
                    "SELECT (SELECT count() FROM otel.otel_traces) AS spans,"
                    " (SELECT sum(spans) FROM otel.mfu_sums_5m) AS spans_in_rollup"
                )
            sent = size * RANKS + sum(each["spans"] for each in seen["mfu serve"])
            assert stored == {"spans": sent, "spans_in_rollup": sent}, (stored, sent)
            found[f"requests of {size} spans"] = {
                name: _spread(rows) | {"peak_resident_mib": peak[name]} for name, rows in seen.items()
            }
    return found


# --- where the time goes -------------------------------------------------------------------------------------------


class Timed(Apart):
    """A place where requests are taken apart that notes the CPU time of each statement, by what it does."""

    def __init__(self, place: Apart, look: str) -> None:
        self._place, self._look = place, look
        self.took: dict[str, list[float]] = {}

    def query(self, sql: str, parameters: Mapping[str, Parameter] | None = None) -> list[Row]:
        name = "look" if sql == self._look else "empty"
        return self._timed(name, partial(self._place.query, sql, parameters))  # type: ignore[no-any-return]

    def insert(self, into: str, form: str, data: bytes) -> None:
        self._timed("read", partial(self._place.insert, into, form, data))

    def store(self, move: Move, parameters: Mapping[str, Parameter]) -> None:
        self._timed("store and roll up", partial(self._place.store, move, parameters))

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        before = time.process_time()
        found = work()
        self.took.setdefault(name, []).append(time.process_time() - before)
        return found


def parts(spans: int, repeats: int) -> dict[str, dict[str, float]]:
    """CPU time of a group in this process, without HTTP and without merges, by what the engine does: the least of
    several, for each span of a group of `spans` and for a group of one, which is what any group costs."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as home, Store(Path(home) / "store") as store:
        place = Arrivals(store, 0, AttributeLimits(128, 256, 32_768))
        engine = place._engine
        engine.query("SYSTEM STOP MERGES")
        for name, size, scale in (("ms, group of one span", 1, 1e3), (f"us per span of {spans}", spans, 1e6 / spans)):
            place._engine = timed = Timed(engine, place._told)
            for number in range(repeats):
                [body] = requests(f"parts-{size}-{number}", size, size)
                assert place.add([Arrival("local", body)], 0, 2 * time.time_ns()) == [Stored(size, {})]
            found[name] = {what: round(min(values) * scale, 2) for what, values in timed.took.items()}
    return found


def _spread(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "spans": sum(row["spans"] for row in rows),
        **{
            name: {
                "median": round(statistics.median(row[name] for row in rows), 2),
                "rounds": [round(row[name], 2) for row in rows],
            }
            for name in rows[0]
            if name != "spans"
        },
    }


# --- the report ----------------------------------------------------------------------------------------------------


def installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--spans", type=int, default=SPANS, help="of each round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found = measured(options.spans, options.rounds)
    largest = found[f"requests of {SIZES[-1]} spans"]["mfu serve"]
    report = {
        "benchmark": "ingest",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{processor_name()}, {os.cpu_count()} cores, load {load:.2f} before and "
        f"{os.getloadavg()[0]:.2f} after",
        "versions": installed(),
        "connections": CONNECTIONS,
        "receivers": found,
        "cpu_of_a_group": parts(16_384, 5),
        "bounds": {
            f"at least {WANTED_PER_S} spans/s into the store": {
                "measured": largest["spans_per_s"]["median"],
                "bound": WANTED_PER_S,
                "holds": largest["spans_per_s"]["median"] >= WANTED_PER_S,
            }
        },
    }
    text = json.dumps(report, indent=2)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
