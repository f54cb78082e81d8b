"""A CUDA device's clock, by events and streams that stand in for torch's; tests/gpu has the real ones."""

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from mfu_sdk.counting import cuda_graphs
from mfu_sdk.run.clock import CudaClock


class Event:
    """Stands in for `torch.cuda.Event`: it is passed when the test says so."""

    made: ClassVar[list["Event"]] = []

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.made.append(self)
        self.streams: list[object] = []
        self.at_ms: float | None = None

    def record(self, stream: object) -> None:
        self.streams.append(stream)
        self.at_ms = None

    def query(self) -> bool:
        return self.at_ms is not None

    def elapsed_time(self, end: "Event") -> float:
        assert self.at_ms is not None
        assert end.at_ms is not None
        return end.at_ms - self.at_ms


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of the current stream, to be changed."""
    number = [0]
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentStream", lambda index: (number[0], index, 1), raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(number=number[0], device_index=3))
    Event.made.clear()
    return number


def test_an_event_is_recorded_again_when_its_mark_is_dropped(current: list[int]) -> None:
    """Never before: two marks that are alive have two events, and a third takes the one that is free."""
    clock = CudaClock("cuda:3")
    first: Any = clock.mark()
    second: Any = clock.mark()
    assert first.event is not second.event
    first.event.at_ms, second.event.at_ms = 10.0, 12.5
    assert clock.elapsed_s(first, second) == 0.0025
    kept = first
    del first
    third: Any = clock.mark()
    assert len(Event.made) == 3
    freed = kept.event
    del kept
    fourth: Any = clock.mark()
    assert fourth.event is freed
    assert clock.elapsed_s(second, fourth) is None, "what it was passed by before is not told of the new mark"
    assert len(Event.made) == 3
    assert {id(mark.event) for mark in (second, third, fourth)} == {id(event) for event in Event.made}
    assert current == [0]


def test_a_mark_lies_on_the_current_stream(current: list[int]) -> None:
    """Also where the stream changes and changes back, and an event is recorded anew on another one."""
    clock = CudaClock("cuda:3")
    for number in (0, 7, 0, 7):
        current[0] = number
        mark: Any = clock.mark()
        assert mark.event.streams[-1].number == number
        del mark
    assert len(Event.made) == 1


@pytest.mark.usefixtures("current")
def test_no_event_is_asked_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA ends a capture with an error when any thread asks; the time is told afterwards."""
    clock = CudaClock("cuda:3")
    marks: list[Any] = [clock.mark(), clock.mark()]
    for at_ms, mark in enumerate(marks):
        mark.event.at_ms = float(at_ms)
    monkeypatch.setitem(cuda_graphs._recording, 1, None)
    assert clock.elapsed_s(*marks) is None
    monkeypatch.delitem(cuda_graphs._recording, 1)
    assert clock.elapsed_s(*marks) == 0.001
