"""`MFUCallback` in a real `Trainer`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from mfu_sdk import testing
from mfu_sdk.integrations.huggingface import MFUCallback
from mfu_sdk.records import Peaks, StepRecord
from mfu_sdk.run import opening
from mfu_sdk.run.clock import HostClock

BATCH, WIDE, OUT = 2, 16, 8
FORWARD = 2 * BATCH * WIDE * OUT
TRAIN = 2 * FORWARD
"""The input needs no gradient, so the backward pass is the product for the weight alone."""
WAITS = 2 * [0.06, 0.04, 0.02]
"""Of three steps of two batches of two rows: accelerate's loader is a batch ahead."""
STEPS = [2.0 + wait for wait in WAITS]

# What these packages do is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """So many rows; each takes a hundredth of a second of the test's clock to fetch."""

    def __init__(self, rows: int, clock: testing.FakeClock) -> None:
        self.rows = rows
        self.clock = clock

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.clock.advance(0.01)
        return {"input_ids": torch.full((WIDE,), float(index)), "labels": torch.zeros(OUT)}


class Model(nn.Module):
    """One layer; a forward takes a second of the test's clock."""

    def __init__(self, clock: testing.FakeClock) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDE, OUT, bias=False)
        self.clock = clock

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.clock.advance(1.0)
        logits = self.layer(input_ids)
        return {"loss": (logits - labels).square().mean(), "logits": logits}


class Slow(TrainerCallback):
    """A hundred seconds of the test's clock pass while a checkpoint is written."""

    def __init__(self, clock: testing.FakeClock) -> None:
        self.clock = clock

    def on_save(self, *_: Any, **__: Any) -> None:
        self.clock.advance(100.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> testing.FakeClock:
    fake = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(fake))
    return fake


@pytest.fixture
def make(tmp_path: Path, clock: testing.FakeClock, peaks: Peaks) -> Callable[..., tuple[Trainer, MFUCallback]]:
    """A trainer of 12 rows, two a batch and two batches a step, with our callback, and where its records go."""

    def made(records: list[StepRecord], **given: Any) -> tuple[Trainer, MFUCallback]:
        arguments = TrainingArguments(
            **{
                "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": BATCH, "max_steps": 6,
                "gradient_accumulation_steps": 2, "per_device_eval_batch_size": BATCH, "logging_steps": 1,
                "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "seed": 0,
            }
            | given
        )  # fmt: skip
        callback = MFUCallback(peaks=peaks, on_step=records.append)
        trainer = Trainer(
            model=Model(clock), args=arguments, train_dataset=Rows(12, clock), eval_dataset=Rows(4, clock),
            # Told of a save before ours is.
            callbacks=[Slow(clock), callback],
        )  # fmt: skip
        return trainer, callback

    return made


Make = Callable[..., tuple[Trainer, MFUCallback]]


def test_steps_by_hand(make: Make) -> None:
    """A step is two micro-batches: their FLOPs, two seconds of work, and the wait for their rows."""
    records: list[StepRecord] = []
    trainer, callback = make(records)
    trainer.train()
    assert [(r.index, r.phase, r.model_flops) for r in records] == [(i, "train", 2 * TRAIN) for i in range(6)]
    assert [r.data_wait_s for r in records] == pytest.approx(WAITS)
    assert [r.duration_s for r in records] == pytest.approx(STEPS)
    summary = callback.summary()
    assert summary is not None
    assert summary.name == "Model"
    # Steps 0, 1, 2 and 4 ran under the counting mode.
    assert summary.mfu == pytest.approx(2 * 2 * TRAIN / (1e9 * (STEPS[3] + STEPS[5])))


def test_what_trainer_logs(make: Make) -> None:
    """`mfu` stands in the log history of the steps that were timed, and in what other callbacks are told."""
    records: list[StepRecord] = []
    trainer, _ = make(records)
    told: list[dict[str, float]] = []

    class Listener(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            told.append(dict(logs))

    trainer.add_callback(Listener())
    trainer.train()
    logged = [entry.get("mfu") for entry in trainer.state.log_history if "loss" in entry]
    third, fifth = (pytest.approx(2 * TRAIN / (1e9 * STEPS[index])) for index in (3, 5))
    assert logged == [None, None, None, third, None, fifth]
    assert [entry.get("mfu") for entry in told if "loss" in entry] == logged


def test_attached_it_is_told_first(make: Make) -> None:
    """Callbacks that stand before the user's, as those of `report_to` do, see what an attached one logs."""
    records: list[StepRecord] = []
    trainer, callback = make(records, eval_strategy="steps", eval_steps=3)
    trainer.remove_callback(callback)
    told: list[dict[str, float]] = []

    class Reporter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            told.append(dict(logs))

    trainer.callback_handler.callbacks.insert(1, Reporter())
    assert callback.attach(trainer) is callback
    trainer.train()
    assert ["mfu" in entry for entry in told if "loss" in entry] == [False, False, False, True, True, True]
    # What comes after a step is known to it there too.
    assert [r.phase for r in records] == 2 * ["train", "train", "train", "eval", "eval"]
    assert callback.summary().notes == ()


def test_evaluations_and_checkpoints(make: Make) -> None:
    """Each batch of an evaluation is a step of phase eval, and writing a checkpoint one of its own."""
    records: list[StepRecord] = []
    trainer, _ = make(records, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3)
    trainer.train()
    train, evaluated, saved = ("train", 2 * TRAIN), ("eval", FORWARD), ("checkpoint", 0)
    assert [(r.phase, r.model_flops) for r in records] == 2 * [train, train, train, evaluated, evaluated, saved]
    assert [r.duration_s for r in records if r.phase == "train"] == pytest.approx(STEPS)
    assert [r.duration_s for r in records if r.phase == "eval"] == pytest.approx(2 * [1.04, 1.0])
    assert [r.duration_s for r in records if r.phase == "checkpoint"] == pytest.approx([100.0] * 2)


def test_checkpoints_alone(make: Make) -> None:
    """Without an evaluation before it, a checkpoint is told apart as well."""
    records: list[StepRecord] = []
    trainer, _ = make(records, save_strategy="steps", save_steps=2)
    trainer.train()
    assert [r.phase for r in records] == 3 * ["train", "train", "checkpoint"]
    assert [r.duration_s for r in records if r.phase == "train"] == pytest.approx(STEPS)


def test_the_best_model_only(make: Make) -> None:
    """With `save_strategy="best"` an evaluation decides whether a checkpoint is written; no step is longer for it."""
    records: list[StepRecord] = []
    trainer, _ = make(
        records, eval_strategy="steps", eval_steps=1, save_strategy="best", metric_for_best_model="loss",
        greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    assert [r.duration_s for r in records if r.phase == "train"] == pytest.approx(STEPS)


def test_once_in_an_epoch(make: Make) -> None:
    """Evaluations and checkpoints at the end of an epoch are told apart as well."""
    records: list[StepRecord] = []
    trainer, _ = make(records, eval_strategy="epoch", save_strategy="epoch")
    trainer.train()
    assert [r.phase for r in records] == 2 * ["train", "train", "train", "eval", "eval", "checkpoint"]
    assert [r.duration_s for r in records if r.phase == "train"] == pytest.approx(STEPS)


def test_tokens(make: Make) -> None:
    """Where `Trainer` counts tokens, each step has its own: two batches of two rows."""
    records: list[StepRecord] = []
    trainer, _ = make(records, include_num_input_tokens_seen="all")
    trainer.train()
    assert [r.tokens for r in records] == [2 * BATCH * WIDE] * 6
    last = [entry for entry in trainer.state.log_history if "mfu" in entry][-1]
    assert last["tokens_per_s"] == pytest.approx(2 * BATCH * WIDE / STEPS[5])


def test_a_resumed_run_goes_on(make: Make, tmp_path: Path) -> None:
    """Resumed from its third step, the run's first step has the index 3."""
    trainer, _ = make([], save_strategy="steps", save_steps=3, max_steps=6)
    trainer.train()
    records: list[StepRecord] = []
    again, _ = make(records)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert [(r.index, r.model_flops) for r in records] == [(3, 2 * TRAIN), (4, 2 * TRAIN), (5, 2 * TRAIN)]


def test_a_training_that_fails_leaves_nothing_for_the_next(make: Make) -> None:
    """`Trainer` tells no callback of an error; the next training closes what it left open."""
    records: list[StepRecord] = []
    trainer, callback = make(records)
    run, trainer.model.forward = trainer.model.forward, None
    with pytest.raises(TypeError):
        trainer.train()
    trainer.model.forward = run
    trainer.train()
    summary = callback.summary()
    assert summary is not None
    assert summary.steps == 6


def test_a_compiled_model(make: Make) -> None:
    """With `torch_compile` what Trainer calls is watched, so that shapes are known and counts are no samples."""
    records: list[StepRecord] = []
    trainer, _ = make(records, torch_compile=True, torch_compile_backend="aot_eager")
    trainer.train()
    assert [r.model_flops for r in records] == [2 * TRAIN] * 6
    assert records[3].count_source == "cached"
