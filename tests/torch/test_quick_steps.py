"""Most steps take a short path through the engine; whatever a loop does, its records are those of the long one."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import torch
from torch import nn

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.records import Peaks, Phase, Rate, StepRecord
from mfu_sdk.run import engine, opening, parameters
from mfu_sdk.run.clock import HostClock
from mfu_sdk.run.costs import Costs
from mfu_sdk.settings import Settings

RATE = Rate(1e6, 1e6, 1e6, "user", 0.0)
PEAKS = Peaks("cpu", {}, {"float32": RATE}, RATE, None, {})


class StoppedError(Exception):
    """What a step of the loop raises."""


@dataclasses.dataclass(frozen=True)
class Act:
    """One step of a loop: its calls' batches, what it is told, and what happens around it."""

    batches: tuple[int, ...] = (2,)
    phase: Phase = "train"
    tokens: int | None = 8
    samples: int | None = None
    seq_lens: tuple[int, ...] | None = None
    waits: bool = False
    inner: Phase | None = None
    again: bool = False
    """Marked twice, the one mark within the other."""
    fails: bool = False
    abandoned: bool = False
    early: bool = False
    """The inner step comes before the first call."""


def program(seed: int) -> list[Act]:
    """Sixty steps, of which half are like one another and the others unlike them in one or two ways."""
    chance = random.Random(seed)
    ways: list[Callable[[Act], Act]] = [
        lambda act: dataclasses.replace(act, batches=tuple(chance.choices((1, 2, 3), k=chance.randrange(4)))),
        lambda act: dataclasses.replace(act, batches=(2, 2)),
        lambda act: dataclasses.replace(act, phase=chance.choice(("eval", "checkpoint"))),
        lambda act: dataclasses.replace(act, tokens=chance.choice((None, 0, 9)), samples=chance.choice((None, 2))),
        lambda act: dataclasses.replace(act, seq_lens=chance.choice(((3, 5), (4, 4)))),
        lambda act: dataclasses.replace(act, waits=True),
        lambda act: dataclasses.replace(act, inner=chance.choice(("eval", "checkpoint")), early=chance.random() < 0.5),
        lambda act: dataclasses.replace(act, again=True),
        lambda act: dataclasses.replace(act, fails=True),
        lambda act: dataclasses.replace(act, abandoned=True),
    ]
    acts = []
    for _ in range(60):
        act = Act()
        for way in chance.sample(ways, chance.choice((0, 0, 1, 2))):
            act = way(act)
        acts.append(act)
    return acts


def within(run: mfu.Monitor, act: Act, model: nn.Module, clock: testing.FakeClock) -> None:
    """The step within `act`'s, where it has one."""
    if act.inner is not None and act.inner != act.phase:
        with run.step(phase=act.inner), torch.no_grad():
            model(torch.ones(5, 4))
            clock.advance(0.125)


def loop(acts: list[Act], clock: testing.FakeClock) -> list[StepRecord]:
    """The records of a loop that does so, without the time of day."""
    model = nn.Linear(4, 4)
    records: list[StepRecord] = []
    plain = dataclasses.replace(Settings.from_env(), profile="off", drift="off")
    with mfu.monitor(model, peaks=PEAKS, settings=plain, on_step=records.append) as run:
        assert run.engine is not None
        for act in acts:
            if act.waits:
                run.engine.data_wait_begins()
                clock.advance(0.5)
                run.engine.data_wait_ends()
            with suppress(StoppedError), ExitStack() as stack:
                if act.abandoned:
                    run.engine.marked_begins(act.phase)
                    clock.advance(0.25)
                    run.engine.marked_abandoned()
                for _ in range(1 + act.again):
                    stack.enter_context(run.step(act.tokens, act.samples, act.phase, act.seq_lens))
                clock.advance(1.0)
                if act.early:
                    within(run, act, model, clock)
                for number, batch in enumerate(act.batches):
                    model(torch.ones(batch, 4)).sum().backward()
                    if number == 0 and not act.early:
                        within(run, act, model, clock)
                if act.fails:
                    raise StoppedError
    assert len({record.index for record in records}) == len(records)
    return [dataclasses.replace(record, start_unix_ns=0) for record in records]


@pytest.fixture
def _short_path_from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "STEADY", 1)


@pytest.fixture
def long_path(monkeypatch: pytest.MonkeyPatch) -> Callable[[], pytest.MonkeyPatch]:
    """Take every step through all that any step may need."""

    def take() -> pytest.MonkeyPatch:
        monkeypatch.setattr(parameters.Parameters, "skip", lambda _self, _most: 0)
        # The last answer is never kept.
        monkeypatch.setattr(Costs, "last", property(lambda _self: None, lambda _self, _value: None), raising=False)
        return monkeypatch

    return take


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[testing.FakeClock]:
    found = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(found))
    return found


@pytest.mark.usefixtures("_short_path_from_the_first_step")
def test_records_are_the_same_on_both_paths(
    clock: testing.FakeClock, long_path: Callable[[], pytest.MonkeyPatch]
) -> None:
    """Calls of many shapes, phases within phases, marks within marks, waits, packed lengths, failures."""
    programs = [program(seed) for seed in range(12)]
    found = [loop(acts, clock) for acts in programs]
    patched = long_path()
    assert [loop(acts, clock) for acts in programs] == found
    patched.undo()


@pytest.mark.usefixtures("_short_path_from_the_first_step", "clock")
def test_most_steps_take_the_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two hundred like steps at most a fourth begin on the long one, and nearly none has its call looked up."""
    began, asked = [0], [0]
    for name, calls in (("_begin", began), ("_see_first_call", asked)):
        original = getattr(engine.Engine, name)

        def counting(self: Any, *args: Any, _of: Any = original, _calls: list[int] = calls, **kwargs: Any) -> None:
            _calls[0] += 1
            _of(self, *args, **kwargs)

        monkeypatch.setattr(engine.Engine, name, counting)
    model = nn.Linear(4, 4)
    plain = dataclasses.replace(Settings.from_env(), profile="off")
    with mfu.monitor(model, peaks=PEAKS, settings=plain) as run:
        for _ in range(200):
            with run.step(tokens=8):
                model(torch.ones(2, 4)).sum().backward()
    # Counted are 0, 1, 2, 4, 8 … 128, and every seventh looks at the weights.
    assert began[0] <= 9 + 200 / 7 + 9
    assert asked[0] <= 9 + 1
