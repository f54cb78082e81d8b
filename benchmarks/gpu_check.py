"""Runs every test that needs a GPU, prints what passed and what was measured as JSON, and keeps it: `make gpu-check`.

It is over within eight minutes: no test begins after seven, and those left are reported as skipped for that. Without a
GPU it says why and does nothing, with exit code 0: a machine without a GPU is no failure.
"""

import json
import platform
import sys
import time
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Not the whole suite: a package that it wants and that is missing here would end the run before it begins.
TESTS = ("tests/gpu", "tests/torch/test_kernels.py")
BEGIN_S = 420.0
"""No test begins later; the longest takes a minute."""
MOST_SAID = 2000


# pytest keeps plugins in sets.
@dataclass(slots=True, eq=False)
class Outcomes:
    """A pytest plugin that keeps each test's outcome, what was said of it and how long it took, and keeps to time."""

    tests: list[dict[str, object]] = field(default_factory=list)
    warned: dict[str, None] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin no test when there is no time for it."""
        spent_s = time.monotonic() - self.began_s
        if spent_s > BEGIN_S:
            pytest.skip(f"{spent_s:.0f} s were gone; run it alone: make gpu-check ARGS='-k {item.name}'")

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
                    **({} if report.outcome == "passed" else {"said": _said(report)}),
                }
            )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read is a failure like any other."""
        if report.outcome == "failed":
            self.tests.append(
                {
                    "test": report.nodeid,
                    "when": "collect",
                    "outcome": "failed",
                    "duration_s": 0.0,
                    "said": _said(report),
                }
            )

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, nodeid: str) -> None:
        """What a library warns of on a machine that we have not seen is no failure of ours, and worth reading."""
        self.warned[f"{warning_message.category.__name__}: {warning_message.message} ({nodeid})"] = None


def _said(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped, or the end of what its failure left."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    return str(report.longrepr or "")[-MOST_SAID:]


def no_gpu() -> str | None:
    """Why torch can use no GPU here, or None where it can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA and ROCm"
    return f"torch {torch.__version__} finds no device"


def installed(*distributions: str) -> str | None:
    """The version of the first that is installed, or None."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def main(arguments: list[str]) -> int:
    """Run the tests with further pytest `arguments`; returns pytest's exit code, 0 where there is no GPU."""
    if reason := no_gpu():
        print(f"gpu-check: skipped: {reason}")
        return 0
    outcomes = Outcomes()
    started = datetime.now(UTC)
    # In one process and one after the other: two would measure each other.
    options = ["-m", "gpu", "-W", "default", "--continue-on-collection-errors", f"--rootdir={ROOT}"]
    code = int(pytest.main([*options, *(str(ROOT / path) for path in TESTS), *arguments], plugins=[outcomes]))
    device = torch.cuda.get_device_properties(0)
    report = {
        "started": started.isoformat(timespec="seconds"),
        "exit_code": code,
        "seconds": round(time.monotonic() - outcomes.began_s, 1),
        "device": device.name,
        "device_memory_bytes": device.total_memory,
        "multiprocessors": device.multi_processor_count,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "triton": installed("triton", "pytorch-triton", "pytorch-triton-rocm"),
        "mfu_sdk": installed("mfu-sdk"),
        "tests": outcomes.tests,
        "warnings": list(outcomes.warned),
    }
    text = json.dumps(report, indent=2, default=str)
    print(text)
    path = RESULTS / f"gpu-check-{device.name.replace(' ', '-')}-{started:%Y%m%dT%H%M%SZ}.json"
    try:
        RESULTS.mkdir(exist_ok=True)
        path.write_text(text + "\n")
        print(f"gpu-check: {path}")
    except OSError as error:
        print(f"gpu-check: the report could not be kept ({error}); it is above")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
