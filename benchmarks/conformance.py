"""What a training process with telemetry in it survives: mfu_sdk beside plain OpenTelemetry, in the same cases.

Run: python benchmarks/conformance.py [-o FILE] [--only WORD]

The cases are those of `tests/telemetry/conformance.py`, each in a process of its own against a collector on loopback;
here with 8 loader workers and 20 epochs. Both record the same: ten or so step spans and a counter of FLOPs, with the
stock settings of their exporters (OTLP over HTTP). Prints both columns, and writes JSON with `-o FILE`.
"""

import argparse
import importlib
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

conformance = importlib.import_module("tests.telemetry.conformance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--only", default="", help="cases with this in their name")
    options = parser.parse_args()
    rows = []
    print(f"{'case':58} {'point':5} mfu_sdk | opentelemetry")
    for case in conformance.CASES:
        if options.only not in case.name:
            continue
        row: dict[str, object] = {"case": case.name, "point": case.point}
        shown = []
        for subject in conformance.SUBJECTS:
            held, figure = conformance.run(case, subject, timeout_s=300.0, workers=8, epochs=20)
            row[subject] = {"holds": held, "figure": figure}
            shown.append(f"{'holds' if held else 'FAILS'}: {figure}")
        rows.append(row)
        print(f"{case.name:58} {case.point:5} {' | '.join(shown)}", flush=True)
    cpu = next(
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    )
    packages = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "torch")
    report = {
        "benchmark": "conformance",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "held": {subject: sum(row[subject]["holds"] for row in rows) for subject in conformance.SUBJECTS},  # type: ignore[index]
        "cases": rows,
    }
    print(json.dumps(report["held"]))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
