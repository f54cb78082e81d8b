"""Report: what each query, each answer and the whole report cost in CPU time, over stored spans of a fleet.

Run: python benchmarks/report.py [--spans N …] [--data DIR] [-o FILE]. 5 M spans take some minutes to load on one core.

- The fleet: 1,000 GPUs of three types over 14 days, 50 workloads of 12 tenants, a fifth of them serving. Four GPUs of
  five send windows of 30 s, the others steps; every attribute that the roll-ups read is on them. A model runs at one
  world size, so that scaling is read and no curve is fitted. The engine makes the spans itself (`numbers`,
  `cityHash64`), a day at a time, in the columns that the Collector inserts: what is timed at loading is ClickHouse, not
  Python. Spans of one GPU lie 14 days / (spans / 1,000) apart, so that 5 M spans fill nearly every five minutes of
  every GPU.
- Each query of `sql/read`, and each of the six answers (query, reckoning, picture), is run from the roll-ups over all
  14 days with edges that no five minutes fill, twice; the less CPU time of the process counts, the engine's threads
  and the reading of rows into Python in it.
- The answers are also run over the last 3.5 and 7 days. What an answer costs hangs on the rows of the hourly roll-up
  that it reads, GPUs × hours × works, and not on how many spans they are the sums of: CPU = fixed + slope × rows is
  fitted over the three, and what a hundred thousand GPUs would cost is reckoned from it, marked as reckoned.

- `--scaling` runs the answers over fleets of half a million to five million spans, each with its share of GPUs and
  workloads, and of what exporters tell; a line through them is drawn on to 500 million spans, with the interval in
  which one more run would lie if it is a line. `--before FILE` holds another text of `sql/read/gpus.sql` against it.

Prints a table; with `-o FILE` it also writes JSON. Exits with 1 where an answer takes more than a second of CPU.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, get_args

from mfu_sdk.peak.device import processor_name
from mfu_sdk.provider import report, schema
from mfu_sdk.provider.engine import Row, text_of
from mfu_sdk.provider.questions import (
    answers,
    by_gpu_type,
    by_scale,
    low_workloads,
    new_hardware,
    trend,
    under_batching,
)
from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import Parameter, Reading, Store

GPUS: Final = 1_000
"""Of 5 million spans; with `--scaling` a fleet of half the spans has half the GPUs and half the workloads."""
DAYS: Final = 14
START_S: Final = 1_779_926_400
"""2026-05-28T00:00:00Z."""

SPAN: Final = Range(START_S * 10**9 + 7_000_000_001, (START_S + DAYS * 86_400) * 10**9 - 7_000_000_001)
"""All of it but some seconds, so that both edges are read from spans."""

LIMIT_S: Final = 1.0
FITTED_DAYS: Final = (3.5, 7.0, 14.0)
SCALED_SPANS: Final = (500_000, 1_000_000, 2_000_000, 5_000_000)
RECKONED_SPANS: Final = 500_000_000
_STUDENT_95: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""The 97.5 % point of Student's t, by degrees of freedom."""
FINGERPRINT: Final = "0" * 16
"""Of no run: the query looks through all windows whatever it finds."""

# `n` counts spans over the fleet in turns: every GPU's first, every GPU's second, and so on.
_FLEET: Final = """
INSERT INTO otel.otel_traces (
    Timestamp, TraceId, SpanId, ParentSpanId, TraceState, SpanName, SpanKind, ServiceName, ResourceAttributes,
    ScopeName, ScopeVersion, SpanAttributes, Duration, StatusCode, StatusMessage)
WITH
    number + {first:UInt64} AS n,
    n % {gpus:UInt64} AS gpu,
    intDiv(n, {gpus:UInt64}) AS turn,
    toUInt64(n / {spans:UInt64} * {days:UInt64}) AS day,
    -- Workloads move to the next 20 GPUs each week.
    (intDiv(gpu, 20) + intDiv(day, 7)) % intDiv({gpus:UInt64}, 20) AS workload,
    workload % 5 = 4 AS serves,
    [1, 2, 4, 8, 16][workload % 5 + 1] AS world,
    workload % 10 AS model,
    intDiv(gpu * 1000, {gpus:UInt64}) AS place,
    multiIf(place < 500, 'NVIDIA H100 80GB HBM3', place < 800, 'NVIDIA A100-SXM4-80GB', 'NVIDIA L40S') AS type,
    multiIf(place < 500, 989e12, place < 800, 312e12, 362e12) AS peak,
    (cityHash64(n, 1) % 10000) / 10000 AS noise,
    0.42 - 0.015 * log2(world) - 0.01 * (model % 3) + 0.02 * (place >= 500) - 0.06 * (workload % 7 = 0)
        + 0.03 * (noise - 0.5) AS mfu,
    n % 5 != 0 AS is_window,
    if(is_window, 30., 1.) AS seconds
SELECT
    fromUnixTimestamp64Nano(toInt64({start:Int64} * 1e9 + n / {spans:UInt64} * {days:UInt64} * 86400e9)),
    hex(MD5(toString(n))), hex(cityHash64(n)), '', '', if(is_window, 'mfu.window', 'mfu.step'), 'Internal',
    concat('workload-', toString(workload)),
    map(
        'mfu.tenant.id', concat('tenant-', toString(workload % 12)),
        'service.name', concat('workload-', toString(workload)),
        'mfu.workload.name', concat('workload-', toString(workload)),
        'mfu.workload.family', hex(cityHash64(model)),
        'mfu.run.id', concat('run-', toString(workload), '-', toString(intDiv(day, 2))),
        'mfu.run.attempt', '0',
        'mfu.dist.rank', toString(gpu % world),
        'mfu.dist.world_size', toString(world),
        'mfu.config.intent', lower(hex(cityHash64('intent', model, world))),
        'mfu.config.fingerprint', lower(hex(cityHash64('fingerprint', model, world, type))),
        'mfu.topology.link', if(world > 8, 'network', 'nvlink'),
        'mfu.topology.link.best', 'nvlink',
        'mfu.allocation.id', concat('slurm-', toString(workload)),
        'host.name', concat('node-', toString(intDiv(gpu, 8))),
        'hw.id', concat('GPU-', toString(gpu)),
        'hw.name', type,
        'hw.vendor', 'nvidia'),
    'mfu_sdk', '0.1.0',
    map(
        'mfu.phase', if(serves, 'decode', 'train'),
        'mfu.model.flop', toString(mfu * peak * seconds),
        'mfu.hardware.flop', toString(1.1 * mfu * peak * seconds),
        'mfu.available.flop', toString(peak * seconds),
        'mfu.expected', '0.45', 'mfu.expected.low', '0.43', 'mfu.expected.high', '0.47',
        'mfu.expected.flop', toString(0.45 * peak * seconds),
        'mfu.expected.available.flop', toString(peak * seconds),
        'mfu.peak.source', 'calibrated',
        'mfu.peak.dtype', 'bfloat16',
        'mfu.convention', 'exact',
        'mfu.count.coverage', '0.97',
        'mfu.count.source', 'cached',
        'mfu.step.data_time', toString(0.02 * seconds),
        'mfu.step.comm_time', toString(0.01 * log2(world) * seconds),
        'mfu.step.skew_time', toString(0.01 * seconds),
        'mfu.step.host_time', toString(0.01 * seconds),
        'mfu.step.time', toString(seconds),
        'mfu.window.step.first', toString(30 * turn),
        'mfu.window.step.count', '30', 'mfu.window.step.timed', '30', 'mfu.window.step.unknown', '0',
        'mfu.token.count', toString(toUInt64(mfu * peak * seconds / 6e9 / (model + 1))),
        'mfu.clock.ratio', toString(0.97 + 0.02 * noise),
        'mfu.witness.utilization', toString(mfu * 1.02),
        'mfu.batch.running', toString(if(serves, 6 + 4 * noise, 8.)),
        'mfu.batch.feasible', if(serves, '32', ''),
        'mfu.expected.feasible', if(serves, '0.6', ''),
        'mfu.queue.waiting', if(serves, '0', ''),
        'mfu.kv_cache.free_ratio', if(serves, '0.6', '')),
    toUInt64(seconds * 1e9), 'Unset', ''
FROM numbers({count:UInt64})
"""


def load(store: Store, spans: int, gpus: int = GPUS) -> dict[str, float]:
    """Make the fleet's spans; what that took."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    chunk = spans // DAYS
    for first in range(0, spans, chunk):
        store.query(
            _FLEET, first=first, count=min(chunk, spans - first), spans=spans, gpus=gpus, days=DAYS, start=START_S
        )
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return {"cpu_s": round(cpu_s, 1), "wall_s": round(wall_s, 1), "spans_per_cpu_s": round(spans / cpu_s)}


def cpu_of(work: Callable[[], object], times: int = 2) -> float:
    """The least CPU seconds of this process, engine included, that `work` takes."""
    taken = []
    for _ in range(times):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return round(min(taken), 3)


def asked(store: Store) -> dict[str, float]:
    """CPU seconds of every query of `sql/read` over the whole range, and of its rows in Python."""
    scope: dict[str, Parameter] = {
        "since": SPAN.since_unix_ns, "until": SPAN.until_unix_ns, "everyone": 1, "tenant": "",
    }  # fmt: skip
    more: dict[str, Parameter] = {
        "bucket_s": 21_600, "fine_s": 10_800, "fingerprint": FINGERPRINT, "run_id": "run-0-0", "host": "node-0",
        "keys": [],
        "since_ns": [], "until_ns": [], "shares": [], "tenants": ["tenant-0"], "hosts": ["node-0"],
        "since_s": ["0"], "until_s": ["0"], "first": "2026-05-28", "last": "2026-06-10",
        "runs": 32, "steps": 4096,
    }  # fmt: skip
    texts = {name: (schema.SQL / "read" / f"{name}.sql").read_text("utf-8") for name in get_args(Reading)}
    given = {
        name: {key: value for key, value in (scope | more).items() if f"{{{key}:" in text}
        for name, text in texts.items()
    }
    return {name: cpu_of(partial(store.read, name, **given[name])) for name in texts}


def answered(store: Store, span: Range) -> dict[str, float]:
    """CPU seconds of each of the six answers: its query, its reckoning and its picture."""
    bucket_s = answers.bucket_of(span)
    long = Range(max(START_S * 10**9, span.since_unix_ns), span.until_unix_ns)
    ways: dict[str, Callable[[], object]] = {
        "low_workloads": lambda: low_workloads.answer(cells(store, "low_workloads", span, bucket_s=bucket_s)),
        "by_gpu_type": lambda: by_gpu_type.answer(cells(store, "by_gpu_type", span)),
        "by_scale": lambda: by_scale.answer(by_scale.curves(cells(store, "by_scale", span))),
        "under_batching_tenants": lambda: under_batching.answer(cells(store, "under_batching_tenants", span)),
        "trend": lambda: trend.answer(cells(store, "change", span, bucket_s=bucket_s), (), bucket_s),
        "new_hardware": lambda: new_hardware.answer(cells(store, "new_hardware", long), long.since_unix_ns // 10**9),
    }
    return {name: cpu_of(work) for name, work in ways.items()}


def cells(store: Store, reading: Reading, span: Range, **parameters: Parameter) -> tuple[Cell, ...]:
    """A question's cells, of everyone."""
    return answers.read(store, reading, span, None, **parameters)


_EXPORTERS: Final = """
INSERT INTO otel.mfu_gpus_5m
WITH number % {gpus:UInt64} AS n, cityHash64(number) % 1000 / 1000 AS noise
SELECT
    toDateTime({start:UInt32} + intDiv(number, {gpus:UInt64}) * 300 + {day:UInt32} * 86400, 'UTC') AS ts,
    concat('node-', toString(intDiv(n, 8))) AS host, concat('GPU-', toString(n)) AS gpu, '' AS slice, '' AS profile,
    'NVIDIA H100 80GB HBM3' AS gpu_type, 10 AS tensor_n, 4 + noise AS tensor, 10 AS engine_n, 9 + noise AS engine,
    10 AS util_n, 9 + noise AS util, 10 AS clock_n, 17000 + 100 * noise AS clock, 10 AS power_n, 6000 + noise AS power,
    10 AS xid_n, 10 AS double_n, 10 AS single_n
FROM numbers({gpus:UInt64} * 288)
"""
"""What exporters tell of every GPU, ten samples in each five minutes of a day."""


def scaled(spans: int, path: Path, before: Path | None) -> dict[str, Any]:
    """One fleet of several: what its answers, and its exporters' GPUs, take and read."""
    gpus = GPUS * spans // 5_000_000
    with Store(path) as store:
        [found] = store.query("SELECT count() AS n FROM otel.otel_traces")
        if not found["n"]:
            load(store, spans, gpus)
            for day in range(DAYS):
                store.query(_EXPORTERS, gpus=gpus, day=day, start=START_S)
            # As a daemon does once a day is over; these are longer over than it looks back.
            store._make_gpu_hours(days=20_000)
        parts = store.query(
            "SELECT table, sum(rows) AS rows, sum(bytes_on_disk) AS bytes FROM system.parts"
            " WHERE database = 'otel' AND active GROUP BY table"
        )
        sizes = {part["table"]: part for part in parts}
        held: dict[str, Parameter] = {
            "since": SPAN.since_unix_ns, "until": SPAN.until_unix_ns,
            "keys": [f"GPU-{n}" for n in range(gpus)], "shares": ["1"] * gpus,
            "since_ns": [str(SPAN.since_unix_ns)] * gpus, "until_ns": [str(SPAN.until_unix_ns)] * gpus,
        }  # fmt: skip
        made: dict[str, Any] = {
            "spans": spans,
            "gpus": gpus,
            "rows": {name: part["rows"] for name, part in sizes.items() if name.startswith(("otel_traces", "mfu_"))},
            "bytes": {name: part["bytes"] for name, part in sizes.items() if name.startswith(("otel_traces", "mfu_"))},
            "answers_cpu_s": answered(store, SPAN),
            "answers_read": {name: looked(store, name) for name in _ANSWERS},
            "gpus_cpu_s": cpu_of(partial(store.read, "gpus", **held)),
            "gpus_read": looked(store, "gpus", held),
        }
        if before is not None:
            text = before.read_text("utf-8")
            made["gpus_before_cpu_s"] = cpu_of(partial(store.query, text, **held))
            made["gpus_before_read"] = looked(store, text, held)
            made["gpus_equal"] = alike(store.query(text, **held), store.read("gpus", **held))
        return made


_ANSWERS: Final = ("low_workloads", "by_gpu_type", "by_scale", "under_batching_tenants", "change", "new_hardware")


def looked(store: Store, name: str, given: dict[str, Parameter] | None = None) -> dict[str, int]:
    """The rows and bytes that the engine reads for a query of `sql/read`, or for a text."""
    text = name if "\n" in name else (schema.SQL / "read" / f"{name}.sql").read_text("utf-8")
    asked: dict[str, Parameter] = given or {
        "since": SPAN.since_unix_ns, "until": SPAN.until_unix_ns, "everyone": 1, "tenant": "", "bucket_s": 21_600,
    }  # fmt: skip
    reader: Any = store._reader
    answer = reader._session.query(text, "Null", params={key: text_of(value) for key, value in asked.items()})
    return {"rows": answer.storage_rows_read(), "bytes": answer.storage_bytes_read()}


def alike(one: list[Row], two: list[Row]) -> bool:
    """Whether two answers are the same but for the order in which they were added up."""
    return len(one) == len(two) and all(
        left.keys() == right.keys()
        and all(
            math.isclose(value, right[key], rel_tol=1e-9) if isinstance(value, float) else value == right[key]
            for key, value in left.items()
        )
        for left, right in zip(one, two, strict=True)
    )


def reckoned(sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """What a fleet of 500 M spans would take: a line through the sizes, and its 95 % interval for one more run."""
    lines = {f"{name}.cpu_s": [size["answers_cpu_s"][name] for size in sizes] for name in sizes[0]["answers_cpu_s"]}
    lines |= {f"{name}.read_bytes": [size["answers_read"][name]["bytes"] for size in sizes] for name in _ANSWERS}
    lines["gpus.cpu_s"] = [size["gpus_cpu_s"] for size in sizes]
    lines["gpus.read_bytes"] = [size["gpus_read"]["bytes"] for size in sizes]
    lines |= {
        f"{table}.stored_bytes": [size["bytes"][table] for size in sizes]
        for table in ("otel_traces", "mfu_sums_5m", "mfu_sums_1h", "mfu_gpus_5m", "mfu_gpus_1h")
    }
    lines["mfu_sums_1h.rows"] = [size["rows"]["mfu_sums_1h"] for size in sizes]
    at = [size["spans"] / 1e6 for size in sizes]
    return {"spans": RECKONED_SPANS, "lines": {name: line(at, values) for name, values in lines.items()}}


def line(at: list[float], values: list[float]) -> dict[str, float]:
    """Least squares over millions of spans, and where the line is at 500 million."""
    n, x = len(at), RECKONED_SPANS / 1e6
    middle, mean = sum(at) / n, sum(values) / n
    spread = sum((each - middle) ** 2 for each in at)
    slope = sum((each - middle) * (value - mean) for each, value in zip(at, values, strict=True)) / spread
    fixed = mean - slope * middle
    left = sum((value - fixed - slope * each) ** 2 for each, value in zip(at, values, strict=True)) / (n - 2)
    error = _STUDENT_95[n - 2] * (left * (1 + 1 / n + (x - middle) ** 2 / spread)) ** 0.5
    told = {"fixed": fixed, "a_million_spans": slope, "reckoned": fixed + slope * x, "give_or_take": error}
    return {name: float(f"{value:.4g}") for name, value in told.items()}


def measured(spans: int, path: Path) -> dict[str, Any]:
    """Everything at one size; a store that is there already is taken as it is, with what its loading took."""
    noted = path.with_suffix(".loading.json")
    with Store(path) as store:
        [found] = store.query("SELECT count() AS n FROM otel.otel_traces")
        if not found["n"]:
            noted.write_text(json.dumps(load(store, spans)))
        tables = ("otel_traces", "mfu_sums_5m", "mfu_sums_1h", "mfu_counting_1h")
        parts = store.query(
            "SELECT table, sum(rows) AS rows, sum(bytes_on_disk) AS bytes FROM system.parts"
            " WHERE database = 'otel' AND active GROUP BY table"
        )
        ranges = []
        for days in FITTED_DAYS:
            span = Range(SPAN.until_unix_ns - round(days * 86_400 * 10**9) + 14 * 10**9, SPAN.until_unix_ns)
            read = store.query(
                "SELECT count() AS n FROM otel.mfu_sums_1h WHERE ts >= fromUnixTimestamp64Nano({since:Int64})",
                since=span.since_unix_ns,
            )
            ranges.append({"days": days, "hour_rows": read[0]["n"], "answers_cpu_s": answered(store, span)})
        return {
            "spans": spans,
            "rows": {part["table"]: part["rows"] for part in parts if part["table"] in tables},
            "bytes": {part["table"]: part["bytes"] for part in parts if part["table"] in tables},
            "loading": json.loads(noted.read_text()) if noted.exists() else None,
            "queries_cpu_s": asked(store),
            "answers_cpu_s": ranges[-1]["answers_cpu_s"],
            "ranges": ranges,
            "report_cpu_s": cpu_of(lambda: report.build(store, SPAN, None)),
            "json_bytes": len(report.to_json(report.build(store, SPAN, None))),
        }


def fitted(ranges: list[dict[str, Any]], name: str) -> dict[str, float]:
    """CPU seconds = fixed + slope × rows of the hourly roll-up, least squares; and what a large fleet would take."""
    points = [(each["hour_rows"] / 1e6, each["answers_cpu_s"][name]) for each in ranges]
    middle_x, middle_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    slope = sum((x - middle_x) * (y - middle_y) for x, y in points) / spread
    fixed = middle_y - slope * middle_x
    return {
        "fixed_s": round(fixed, 3),
        "s_per_million_rows": round(slope, 3),
        "reckoned_s_for_100k_gpus_14_days": round(fixed + slope * 100_000 * DAYS * 24 / 1e6, 1),
    }


def main() -> None:
    """Load, measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, nargs="+", default=[500_000, 5_000_000])
    parser.add_argument(
        "--scaling", action="store_true", help="fleets of several sizes, and what 500 M spans would take"
    )
    parser.add_argument("--before", type=Path, help="SQL to hold sql/read/gpus.sql against, such as an older version's")
    parser.add_argument("--data", type=Path, help="where stores are kept, and taken from where they are there")
    parser.add_argument("-o", type=Path, help="also write JSON")
    arguments = parser.parse_args()
    kept = arguments.data or Path(tempfile.mkdtemp())
    try:
        # A process holds one store, and what one size has cached is not to help the next.
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            if arguments.scaling:
                sizes = [pool.apply(scaled, (spans, kept / f"g{spans}", arguments.before)) for spans in SCALED_SPANS]
            else:
                sizes = [pool.apply(measured, (spans, kept / f"s{spans}")) for spans in arguments.spans]
    finally:
        if arguments.data is None:
            shutil.rmtree(kept)
    result: dict[str, Any] = {
        "benchmark": "scaling" if arguments.scaling else "report",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{processor_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("chdb-core", "mfu-sdk")}},
        "fleet": f"{GPUS} GPUs, {DAYS} days, 50 workloads, 12 tenants",
        "sizes": sizes,
    }
    if arguments.scaling:
        result["reckoned"] = reckoned(sizes)
        print(json.dumps(result, indent=1))
    else:
        told(result)
    if arguments.o is not None:
        arguments.o.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if result.get("within_limit", True) else 1)


def told(result: dict[str, Any]) -> None:
    """Fit and print the sizes of one fleet."""
    sizes = result["sizes"]
    largest = sizes[-1]
    result["fits"] = {name: fitted(largest["ranges"], name) for name in largest["answers_cpu_s"]}
    result["limit_s"] = LIMIT_S
    result["within_limit"] = max(largest["answers_cpu_s"].values()) <= LIMIT_S
    for size in sizes:
        print(f"{size['spans']:,} spans: rows {size['rows']}, report {size['report_cpu_s']} s of CPU")
        for kind in ("queries_cpu_s", "answers_cpu_s"):
            print("  " + "  ".join(f"{name} {value:.2f}" for name, value in size[kind].items()))
    print(json.dumps(result["fits"], indent=1))


if __name__ == "__main__":
    main()
