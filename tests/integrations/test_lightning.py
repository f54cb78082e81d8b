"""`MFUCallback` in a real Lightning `Trainer`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader

from mfu_sdk import testing
from mfu_sdk.integrations.lightning import MFUCallback
from mfu_sdk.records import Peaks, StepRecord
from mfu_sdk.run import opening
from mfu_sdk.run.clock import HostClock

BATCH, WIDE, OUT = 2, 16, 8
FORWARD = 2 * BATCH * WIDE * OUT
TRAIN = 2 * FORWARD

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(LightningModule):
    """One layer behind an attribute, as most have it; a batch takes a second of the test's clock."""

    def __init__(self, clock: testing.FakeClock, *, by_hand: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDE, OUT, bias=False))
        self.clock = clock
        self.automatic_optimization = not by_hand

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss = self.net(batch).square().mean()
        self.clock.advance(1.0)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.net(batch)
        self.clock.advance(0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Told(DummyLogger):
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "mfu" in metrics:
            self.logged.append((step, metrics))


class Slow(ModelCheckpoint):
    """A hundred seconds of the test's clock pass while a checkpoint is written."""

    clock: testing.FakeClock

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.clock.advance(100.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> testing.FakeClock:
    fake = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(fake))
    return fake


Fit = Callable[..., list[StepRecord]]


@pytest.fixture
def fit(tmp_path: Path, clock: testing.FakeClock, peaks: Peaks) -> Fit:
    """Fits `module` on six batches, with our callback among `callbacks`: the records."""

    def fitted(module: LightningModule | None = None, callbacks: Any = (), **given: Any) -> list[StepRecord]:
        records: list[StepRecord] = []

        def rows(batches: int) -> DataLoader[torch.Tensor]:
            return DataLoader(torch.randn(batches * BATCH, WIDE), BATCH)

        trainer = Trainer(
            **{
                "accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False,
                "logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path,
            }
            | given,
            callbacks=[MFUCallback(peaks=peaks, on_step=records.append), *callbacks],
        )  # fmt: skip
        trainer.fit(module or Module(clock), rows(6), rows(2))
        return records

    return fitted


def steps(records: list[StepRecord]) -> list[tuple[int, str, int | None, float]]:
    return [(r.index, r.phase, r.model_flops, r.duration_s) for r in records]


def test_steps_by_hand(fit: Fit) -> None:
    """Six steps of a second, with the FLOPs that a hand works out; then two batches of a validation."""
    found = steps(fit())
    assert found[:6] == [(index, "train", TRAIN, pytest.approx(1.0)) for index in range(6)]
    assert found[6:] == [(index, "eval", FORWARD, pytest.approx(0.5)) for index in (6, 7)]


def test_accumulated_batches_are_one_step(fit: Fit) -> None:
    """Two batches for each step of the optimizer: three steps of two seconds."""
    found = steps(fit(accumulate_grad_batches=2, limit_val_batches=0))
    assert found == [(index, "train", 2 * TRAIN, pytest.approx(2.0)) for index in range(3)]


def test_optimized_by_hand(clock: testing.FakeClock, fit: Fit) -> None:
    """A module that steps its optimizer itself is measured in the same way."""
    found = steps(fit(Module(clock, by_hand=True), limit_val_batches=0))
    assert found == [(index, "train", TRAIN, pytest.approx(1.0)) for index in range(6)]


def test_a_validation_in_between(fit: Fit) -> None:
    """Validated after every third batch: its batches are steps of phase eval, and in no step of the training."""
    found = fit(val_check_interval=3)
    assert [r.phase for r in found] == 2 * ["train", "train", "train", "eval", "eval"]
    assert [r.duration_s for r in found if r.phase == "train"] == pytest.approx([1.0] * 6)


def test_checkpoints_are_in_no_step(fit: Fit, clock: testing.FakeClock, tmp_path: Path) -> None:
    """Written after every second step, a hundred seconds each: no step is longer for it."""
    saving = Slow(tmp_path, every_n_train_steps=2, save_top_k=-1)
    saving.clock = clock
    records = fit(callbacks=[saving], enable_checkpointing=True, limit_val_batches=0)
    assert clock.now_ns >= 300e9
    assert [r.duration_s for r in records] == pytest.approx([1.0] * 6)


def test_loggers_are_told(fit: Fit) -> None:
    """Every second step the loggers get the sums over the timed steps since."""
    told = Told()
    fit(logger=told, log_every_n_steps=2, limit_val_batches=0)
    # Steps 0, 1, 2 and 4 ran under the counting mode.
    assert [(step, values["mfu"]) for step, values in told.logged] == [
        (4, pytest.approx(TRAIN / 1e9)),
        (6, pytest.approx(TRAIN / 1e9)),
    ]


def test_the_users_error_ends_the_run(fit: Fit, clock: testing.FakeClock) -> None:
    """The step that it ended says so, and no hook is left."""

    class Failing(Module):
        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            if index == 3:
                raise ZeroDivisionError("mine")
            return super().training_step(batch, index)

    module = Failing(clock)
    with pytest.raises(ZeroDivisionError, match="mine"):
        fit(module)
    assert not any(each._forward_pre_hooks for each in module.modules())


def test_a_resumed_fit_goes_on(fit: Fit, clock: testing.FakeClock, tmp_path: Path, peaks: Peaks) -> None:
    """A second epoch that starts from the first one's checkpoint begins with the index 6."""
    fit(callbacks=[ModelCheckpoint(tmp_path, filename="last")], enable_checkpointing=True, limit_val_batches=0)
    records: list[StepRecord] = []
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[MFUCallback(peaks=peaks, on_step=records.append)],
    )  # fmt: skip
    trainer.fit(Module(clock), DataLoader(torch.randn(6 * BATCH, WIDE), BATCH), ckpt_path=tmp_path / "last.ckpt",
                weights_only=False)  # fmt: skip
    assert [r.index for r in records] == [6, 7, 8, 9, 10, 11]
