"""A loop that Accelerate prepared, under its real `Accelerator`."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import GeneralTracker
from torch import nn
from torch.utils.data import DataLoader

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.integrations.accelerate import monitor
from mfu_sdk.records import Peaks, StepRecord

BATCH, WIDE, OUT = 2, 16, 8
TRAIN = 2 * 2 * BATCH * WIDE * OUT

pytestmark = pytest.mark.filterwarnings("ignore")


class Told(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "told"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    @property
    def tracker(self) -> list[tuple[int | None, dict[str, float]]]:
        return self.logged

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        self.logged.append((step, values))


@pytest.fixture
def made() -> Iterator[tuple[Accelerator, Told, tuple[Any, ...]]]:
    """An accelerator that accumulates two batches a step, its tracker, and a prepared model, optimizer and loader."""
    tracker = Told()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, log_with=tracker)
    accelerator.init_trackers("test")
    model = nn.Linear(WIDE, OUT, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    yield accelerator, tracker, accelerator.prepare(model, optimizer, DataLoader(torch.randn(24, WIDE), BATCH))
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train(accelerator: Accelerator, model: nn.Module, optimizer: Any, loader: Any) -> None:
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).square().mean())
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("given", [True, False])
def test_accumulated_batches_are_one_step(given: bool, made: Any, peaks: Peaks) -> None:
    """Twelve batches, two a step: six steps with the FLOPs of two batches, the prepared optimizer given or not."""
    accelerator, _, (model, optimizer, loader) = made
    records: list[StepRecord] = []
    with monitor(accelerator, model, optimizer if given else None, peaks=peaks, on_step=records.append) as run:
        train(accelerator, model, optimizer, run.batches(loader))
    assert [(r.phase, r.model_flops) for r in records] == [("train", 2 * TRAIN)] * 6
    assert run.summary().waterfall.keys() >= {"data_wait"}


def test_trackers_are_told(made: Any, peaks: Peaks) -> None:
    """Every third step the trackers get the sums over the timed steps among them."""
    accelerator, tracker, (model, optimizer, loader) = made
    records: list[StepRecord] = []
    with monitor(accelerator, model, optimizer, peaks=peaks, log_every=3, on_step=records.append) as run:
        train(accelerator, model, optimizer, loader)
        train(accelerator, model, optimizer, loader)
    assert run.summary().steps == 12
    # 0, 1, 2, 4 and 8 ran under the counting mode.
    timed = {5: (3, 5), 8: (6, 7), 11: (9, 10, 11)}
    assert [step for step, _ in tracker.logged] == list(timed)
    for step, values in tracker.logged:
        seconds = sum(records[index].duration_s for index in timed[step])
        assert values["mfu"] == pytest.approx(len(timed[step]) * 2 * TRAIN / (1e9 * seconds))


def test_log_every_has_a_rule(made: Any) -> None:
    """Zero steps is none."""
    accelerator, _, (model, _, _) = made
    with pytest.raises(ConfigurationError, match="log_every=0: must be at least 1 step"):
        monitor(accelerator, model, log_every=0)


def test_a_step_that_was_skipped_is_no_step(made: Any, peaks: Peaks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the inner optimizer does not step, as with gradients that are not finite, its work is the next step's."""
    accelerator, _, (model, optimizer, loader) = made
    records: list[StepRecord] = []
    with monitor(accelerator, model, optimizer, peaks=peaks, on_step=records.append):
        for index, batch in enumerate(loader):
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).square().mean())
                if index // 2 != 2:
                    optimizer.step()
                optimizer.zero_grad()
    assert [r.model_flops for r in records] == [2 * TRAIN, 2 * TRAIN, 4 * TRAIN, 2 * TRAIN, 2 * TRAIN]
