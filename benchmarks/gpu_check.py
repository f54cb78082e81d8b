"""Runs every test that needs a GPU, prints what passed and what was measured as JSON, and keeps it: `make gpu-check`.

Without a GPU it says why and does nothing, with exit code 0: a machine without a GPU is no failure.
"""

import json
import platform
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(slots=True)
class Outcomes:
    """A pytest plugin that keeps each test's outcome and how long it took."""

    tests: list[dict[str, object]] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the call, or what went wrong or was skipped before or after it."""
        if report.when == "call" or report.outcome != "passed":
            self.tests.append(
                {
                    "test": report.nodeid,
                    "when": report.when,
                    "outcome": report.outcome,
                    "duration_s": round(report.duration, 3),
                    # What the test has measured: `record_property`.
                    **({"figures": dict(report.user_properties)} if report.user_properties else {}),
                }
            )


def no_gpu() -> str | None:
    """Why torch can use no GPU here, or None where it can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA and ROCm"
    return f"torch {torch.__version__} finds no device"


def main(arguments: list[str]) -> int:
    """Run the tests with further pytest `arguments`; returns pytest's exit code, 0 where there is no GPU."""
    if reason := no_gpu():
        print(f"gpu-check: skipped: {reason}")
        return 0
    outcomes = Outcomes()
    started = datetime.now(UTC)
    code = int(pytest.main(["-m", "gpu", *arguments], plugins=[outcomes]))
    device = torch.cuda.get_device_properties(0)
    report = {
        "started": started.isoformat(timespec="seconds"),
        "exit_code": code,
        "device": device.name,
        "device_memory_bytes": device.total_memory,
        "multiprocessors": device.multi_processor_count,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "triton": version("triton"),
        "mfu_sdk": version("mfu-sdk"),
        "tests": outcomes.tests,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu-check-{device.name.replace(' ', '-')}-{started:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    print(f"gpu-check: {path}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
