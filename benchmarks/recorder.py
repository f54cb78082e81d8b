"""What the flight recorder costs the step path: microseconds a step, mapped and by system calls.

Run: python benchmarks/recorder.py [--directory DIR] [-o FILE]

A step as `mfu.monitor` hands it over: ten numbers and what its demand has in common with others, packed, checksummed
and written to a file of the file system that DIR lies on. Variants take turns, and each figure is the least and the
median of its rounds. Prints JSON, or writes it with `-o FILE`.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from mfu_sdk.export import flight_file
from mfu_sdk.export.recorder import Recorder
from mfu_sdk.records import RunIdentity
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.held import Held
from mfu_sdk.run.rows import Rows
from mfu_sdk.run.work import Work
from mfu_sdk.settings import Settings

ROUNDS, CALLS = 21, 5000
IDENTITY = RunIdentity("bench", 0, "bench", None, 0, None, 1, "cpu", None, None, 1_700_000_000_000_000_000)
DEMAND = Demand(10**12, 10**12, {"float32": 10**12}, 10**10, 2 * 10**10, 10**9, 1e9, 1.0, "cached")
HELD = Held(DEMAND, "float32", "calibrated", 1e11, 9e10, 9.5e10, 0.5, 0.8, 1.0, 1000.0)


def passed(index: int) -> Work:
    work = Work(index, "train", None, None, IDENTITY.start_unix_ns, DEMAND, tokens=8192, batch_running=8.0)  # type: ignore[arg-type]
    work.took_s, work.waited_s, work.held = 0.2, 0.01, HELD
    return work


def recorder(directory: Path, *, mapped: bool) -> Recorder:
    kind = flight_file.file_system(directory)
    # What is chosen by file system otherwise is chosen by us.
    flight_file.MAPPED = frozenset({kind} if mapped else ())  # type: ignore[misc]
    found = Recorder.open(IDENTITY, {"mfu.run.id": "bench"}, Settings(recorder_dir=directory))
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        kind = flight_file.file_system(Path(folder))
        variants: dict[str, Callable[[], object]] = {}
        steps = [passed(7)]
        for name, mapped in (("mapped", True), ("system_calls", False)):
            made = recorder(Path(folder), mapped=mapped)
            rows = Rows(
                made, "exact", lambda held: (None, None, None) if held is None else (held.expected_mfu, None, None)
            )
            variants[f"{name}_us"] = partial(lambda made, rows: made.append(rows(steps)), made, rows)
            variants[f"{name}_append_alone_us"] = partial(made.append, rows(steps))
        took: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, call in variants.items():
                began = time.thread_time_ns()
                for _ in range(CALLS):
                    call()
                took[name].append((time.thread_time_ns() - began) / CALLS / 1e3)
    report = {
        "benchmark": "recorder",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "system": f"{platform.release()}, {kind}",
        "python": sys.version.split()[0],
        "unit": "thread CPU time of one step",
        "results": {
            name: {"least": round(min(values), 3), "median": round(statistics.median(values), 3)}
            for name, values in took.items()
        },
    }
    text = json.dumps(report, indent=2)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)


if __name__ == "__main__":
    main()
