"""The command for machines with a GPU keeps to its time, and its report says why: tried here, where there is none."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu(check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says why nothing is run, and that is no failure."""
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("gpu-check: skipped: torch ")
    assert said.count("\n") == 1


def test_no_test_begins_late(check: ModuleType) -> None:
    """What there is no time for is skipped, with the command that runs it alone."""
    item: Any = SimpleNamespace(name="test_sustained")
    outcomes = check.Outcomes()
    # As pytest holds its plugins.
    assert outcomes in {outcomes}
    outcomes.pytest_runtest_setup(item)
    outcomes.began_s -= check.BEGIN_S + 1
    with pytest.raises(pytest.skip.Exception, match=r"421 s were gone; .* ARGS='-k test_sustained'"):
        outcomes.pytest_runtest_setup(item)


def test_the_report_says_why(check: ModuleType) -> None:
    """Of a skip its reason, of a failure the end of its traceback, of a pass what it measured; no line for set-ups."""
    outcomes = check.Outcomes()

    def report(when: Any, outcome: Any, longrepr: Any = None, figures: Any = ()) -> None:
        outcomes.pytest_runtest_logreport(
            pytest.TestReport(
                "tests/gpu/test_it.py::test_it", ("", 0, ""), {}, outcome, longrepr, when,
                duration=1.23456, user_properties=figures,
            )
        )  # fmt: skip

    report("setup", "passed")
    report("call", "passed", figures=[("mfu", 0.7)])
    report("setup", "skipped", ("test_it.py", 3, "Skipped: no GPM"))
    report("call", "failed", "x" * 5000 + "assert 1 == 2")
    passed, skipped, failed = outcomes.tests
    assert (passed["figures"], passed["duration_s"]) == ({"mfu": 0.7}, 1.235)
    assert (skipped["outcome"], skipped["said"]) == ("skipped", "Skipped: no GPM")
    assert failed["said"].endswith("assert 1 == 2")
    assert len(failed["said"]) == check.MOST_SAID


def test_it_runs_every_test_of_a_gpu(check: ModuleType) -> None:
    """The files that it names are all that have tests for a GPU."""
    root = Path(__file__).parents[2]
    named = {
        each
        for path in check.TESTS
        for each in ([root / path] if path.endswith(".py") else (root / path).glob("test_*.py"))
    }
    marked = {path for path in (root / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()}
    assert marked - {Path(__file__)} == named
