"""The torchtitan monitor around a loop of the shape of its `Trainer` (sources of 2026-08); it is not installed here."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from mfu_sdk import testing
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.integrations.torchtitan import monitor
from mfu_sdk.records import Peaks, StepRecord
from mfu_sdk.run import opening
from mfu_sdk.run.clock import HostClock

BATCH, LENGTH, WIDE, VOCAB = 2, 4, 16, 8
FORWARD = 2 * BATCH * LENGTH * WIDE * VOCAB
TRAIN = 3 * FORWARD
"""The look-up is free; its weights are trained, so the head's input needs a gradient too."""
Batch = tuple[dict[str, torch.Tensor], torch.Tensor]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCAB, WIDE)
        self.lm_head = nn.Linear(WIDE, VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.tok_embeddings(tokens))


class Checkpointer:
    """A hundred seconds of the test's clock for every third step; the others are looked at and let be."""

    def __init__(self, clock: testing.FakeClock) -> None:
        self.clock = clock

    def save(self, curr_step: int, last_step: bool = False) -> None:
        if curr_step % 3 == 0:
            self.clock.advance(100.0)


class Validator:
    def should_validate(self, step: int) -> bool:
        return step % 4 == 0

    @torch.no_grad()
    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        for _ in range(2):
            model_parts[0](torch.zeros(BATCH, LENGTH, dtype=torch.long))


class Trainer:
    """The names and the order of torchtitan's `Trainer`: two micro-batches for each step."""

    gradient_accumulation_steps = 2

    def __init__(self, clock: testing.FakeClock, *, fails_at: int = 0) -> None:
        self.clock = clock
        self.fails_at = fails_at
        self.model_parts: list[nn.Module] = [Decoder()]
        self.optimizers = torch.optim.SGD(self.model_parts[0].parameters(), lr=0.1)
        self.checkpointer = Checkpointer(clock)
        self.validator = Validator()
        self.step = 0
        self.ntokens_seen = 0

    def batch_generator(self, dataloader: Any) -> Iterator[Batch]:
        for tokens in dataloader:
            self.clock.advance(0.25)
            yield {"input": tokens}, tokens

    def train_step(self, data_iterator: Iterator[Batch]) -> None:
        self.optimizers.zero_grad()
        groups = [next(data_iterator) for _ in range(self.gradient_accumulation_steps)]
        if self.step == self.fails_at:
            raise RuntimeError("not finite")
        for inputs, labels in groups:
            logits = self.model_parts[0](inputs["input"])
            self.ntokens_seen += labels.numel()
            nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
            self.clock.advance(1.0)
        self.optimizers.step()

    def train(self) -> None:
        data_iterator = self.batch_generator(torch.zeros(16, BATCH, LENGTH, dtype=torch.long))
        while self.step < 8:
            self.step += 1
            self.train_step(data_iterator)
            self.checkpointer.save(self.step, last_step=self.step == 8)
            if self.validator.should_validate(self.step):
                self.validator.validate(self.model_parts, self.step)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> testing.FakeClock:
    fake = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(fake))
    return fake


def test_steps_by_hand(clock: testing.FakeClock, peaks: Peaks) -> None:
    """FLOPs, tokens, waits and times of a step; validations are steps of their own, checkpoints none."""
    trainer = Trainer(clock)
    records: list[StepRecord] = []
    with monitor(trainer, peaks=peaks, on_step=records.append) as run:
        trainer.train()
    train = [r for r in records if r.phase == "train"]
    assert [(r.model_flops, r.tokens) for r in train] == [(2 * TRAIN, 2 * BATCH * LENGTH)] * 8
    assert [r.duration_s for r in train] == pytest.approx([2.5] * 8)
    assert [r.data_wait_s for r in train] == pytest.approx([0.5] * 8)
    assert [(r.index, r.model_flops) for r in records if r.phase == "eval"] == [(4, 2 * FORWARD), (9, 2 * FORWARD)]
    assert run.summary().name == "Decoder"


def test_nothing_is_left_on_the_trainer(clock: testing.FakeClock, peaks: Peaks) -> None:
    """Afterwards its methods are its class's again, also behind an error, which passes unchanged."""
    trainer = Trainer(clock, fails_at=3)
    records: list[StepRecord] = []
    with (
        pytest.raises(RuntimeError, match="not finite"),
        monitor(trainer, peaks=peaks, on_step=records.append),
    ):
        trainer.train()
    assert [r.error_type for r in records] == [None, None, "RuntimeError"]
    for owner in (trainer, trainer.checkpointer, trainer.validator):
        assert not {"train_step", "batch_generator", "save", "validate"} & vars(owner).keys()


def test_a_resumed_run_goes_on(clock: testing.FakeClock, peaks: Peaks) -> None:
    """A trainer that has loaded step 5 goes on with the index 5."""
    trainer = Trainer(clock)
    trainer.step = 5
    records: list[StepRecord] = []
    with monitor(trainer, peaks=peaks, on_step=records.append):
        trainer.train()
    assert [r.index for r in records if r.phase == "train"] == [5, 6, 7]


def test_what_is_no_trainer_is_refused() -> None:
    """The message says what it lacks."""
    with pytest.raises(ConfigurationError, match=r"trainer=object.*has no model_parts, train_step"), monitor(object()):
        pass
