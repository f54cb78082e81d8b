"""The decorator for plain functions."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mfu_sdk import testing
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.integrations.functions import measured
from mfu_sdk.records import Peaks, StepRecord
from mfu_sdk.run import opening
from mfu_sdk.run.clock import HostClock

WIDE = 16


def product(rows: int) -> int:
    return 2 * rows * WIDE * WIDE


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> testing.FakeClock:
    fake = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(fake))
    return fake


@pytest.fixture
def records() -> list[StepRecord]:
    return []


@pytest.fixture
def multiply(clock: testing.FakeClock, peaks: Peaks, records: list[StepRecord]) -> Iterator[Any]:
    """A product of half a second."""

    @measured(name="products", peaks=peaks, on_step=records.append)
    def multiply(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Rows times weights."""
        clock.advance(0.5)
        return rows @ weights

    yield multiply
    multiply.close()


def test_calls_by_hand(multiply: Any, clock: testing.FakeClock, records: list[StepRecord]) -> None:
    """Each call is a step with the FLOPs of its shapes; the ten seconds between two calls are no one's."""
    weights = torch.randn(WIDE, WIDE)
    shapes = [4, 4, 4, 4, 4, 6, 4, 6]
    for rows in shapes:
        assert multiply(torch.randn(rows, WIDE), weights).shape == (rows, WIDE)
        clock.advance(10.0)
    assert [r.model_flops for r in records] == [product(rows) for rows in shapes]
    assert [r.duration_s for r in records] == pytest.approx([0.5] * 8)
    assert {r.phase for r in records} == {"inference"}
    # Looked up by shapes, not the mean of a sample.
    assert [r.count_source for r in records[5:]] == ["measured", "cached", "cached"]
    summary = multiply.summary()
    assert summary.name == "products"
    assert summary.mfu == pytest.approx((2 * product(4) + product(6)) / (1e9 * 1.5))


def test_it_is_still_the_function(multiply: Any) -> None:
    """Its name and its docstring are the function's, and so is what it raises."""
    assert (multiply.__name__, multiply.__doc__) == ("multiply", "Rows times weights.")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        multiply(torch.randn(2, 3), torch.randn(2, 3))


def test_a_call_that_fails_is_in_no_sum(multiply: Any, records: list[StepRecord]) -> None:
    """Its step says what ended it."""
    with pytest.raises(RuntimeError):
        multiply(torch.randn(2, 3), torch.randn(2, 3))
    assert [r.error_type for r in records] == ["RuntimeError"]
    assert multiply.summary().timed_steps == 0


def test_it_may_call_itself(clock: testing.FakeClock, peaks: Peaks, records: list[StepRecord]) -> None:
    """The outer call is the step."""

    @measured(peaks=peaks, on_step=records.append)
    def power(x: torch.Tensor, exponent: int) -> torch.Tensor:
        return x if exponent == 1 else x @ power(x, exponent - 1)

    power(torch.randn(WIDE, WIDE), 4)
    power.close()
    assert [r.model_flops for r in records] == [3 * product(WIDE)]


def test_other_threads_are_not_measured(multiply: Any, records: list[StepRecord]) -> None:
    """A call in another thread does what it does, and is no step."""
    weights = torch.randn(WIDE, WIDE)
    multiply(weights, weights)
    thread = threading.Thread(target=multiply, args=(weights, weights))
    thread.start()
    thread.join()
    assert len(records) == 1


def test_as_a_method(clock: testing.FakeClock, peaks: Peaks, records: list[StepRecord]) -> None:
    """Decorated in a class it is bound to its objects."""

    class Solver:
        def __init__(self) -> None:
            self.weights = torch.randn(WIDE, WIDE)

        @measured(peaks=peaks, on_step=records.append)
        def solve(self, rows: torch.Tensor) -> torch.Tensor:
            return rows @ self.weights

    solver = Solver()
    for _ in range(2):
        solver.solve(torch.randn(4, WIDE))
    Solver.solve.close()
    assert [r.model_flops for r in records] == [product(4)] * 2


def test_what_is_done_later_is_refused() -> None:
    """Coroutines and generators belong to mfu.inference; an unknown phase is named."""

    async def later() -> None: ...

    def chunks() -> Iterator[int]:
        yield 1

    for function in (later, chunks):
        with pytest.raises(ConfigurationError, match=r"must be a plain function; .*mfu.inference's"):
            measured()(function)
    with pytest.raises(ConfigurationError, match=r"phase='solve': must be one of train, eval"):
        measured(phase="solve")  # type: ignore[arg-type]  # wrong on purpose


def test_before_the_first_call(multiply: Any) -> None:
    """There is no summary yet, and the message says when there is."""
    with pytest.raises(ConfigurationError, match="was not called yet"):
        multiply.summary()


def test_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """MFU_ENABLED=0: the function alone."""
    monkeypatch.setenv("MFU_ENABLED", "0")

    @measured()
    def add(a: int, b: int) -> int:
        return a + b

    assert add(1, 2) == 3
    add.close()
    assert add.summary().mfu is None
