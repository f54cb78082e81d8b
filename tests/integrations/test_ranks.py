"""Integrations with several ranks: each framework under torchrun, two processes over gloo.

Run as a script this file is one rank.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Receiver, Run

pytestmark = pytest.mark.slow

ROWS, STEPS = 16, 8
# Two layers, 64 → 32 → 16; the first one's input needs no gradient. Of one batch on one rank.
MLP = 2 * 2 * ROWS * 64 * 32 + 3 * 2 * ROWS * 32 * 16
# A block of 64 wide has 12 d² weights and multiplies each visible pair by d twice; the head has d·V. Four rows of 32.
GPT2 = 3 * (2 * (2 * 12 * 64**2 * 128 + 2 * 2 * 64 * 4 * 32 * 33 // 2) + 2 * 64 * 256 * 128)
FLOPS = {"accelerate": MLP, "accelerate_gathering": 2 * MLP, "huggingface": 2 * GPT2, "lightning": MLP}
"""Of a training step on one rank: the second and third gather two micro-batches."""
LATE_S = 0.25
"""Where micro-batches are gathered, rank 1 comes so late to every exchange."""


def _be_late() -> None:
    if _rank() == 1:
        time.sleep(LATE_S)


def _rank() -> int:
    return int(os.environ["RANK"])


def be_a_rank(name: str, folder: Path) -> None:
    """Train under a framework's integration and write down what its summary tells."""
    from mfu_sdk.export import worker
    from mfu_sdk.records import Peaks, Rate
    from mfu_sdk.run import board

    # On a machine that does other things too, a second may not be enough to be heard.
    board.ANSWER_S = board.OTHERS_S = 60.0
    worker.EXIT_S = 60.0  # type: ignore[misc]
    records: list[Any] = []
    peaks = Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})
    train = {"huggingface": huggingface, "lightning": lightning}.get(name, accelerate)
    summary = train(name, on_step=records.append, peaks=peaks)
    ranks = summary.ranks
    told = {
        "steps": [record.model_flops for record in records if record.phase == "train"],
        "evaluated": [record.model_flops for record in records if record.phase == "eval"],
        "mfu": summary.mfu,
        "bars": {bar.name: bar.seconds for bar in summary.bars},
        "comm_s": [record.comm_s for record in records if record.phase == "train"],
        "timed": sum(record.timed for record in records if record.phase == "train"),
        "sum": sum(summary.waterfall.values()),
        "ranks": ranks.world_size,
        "complete": ranks.complete,
        "each": [(each.model_flops, each.available_flops) for each in ranks.ranks],
        "global_mfu": ranks.mfu,
        "step_flops": ranks.step_flops,
        "notes": [*summary.notes, *ranks.notes],
    }
    (folder / f"{_rank()}.json").write_text(json.dumps(told))


def _rows(steps: int) -> Any:
    import torch
    from torch.utils.data import TensorDataset

    return TensorDataset(torch.randn(2 * steps * ROWS, 64))


def _perceptron() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False))


def accelerate(name: str, **options: Any) -> Any:
    """A prepared loop, with or without gathering micro-batches."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from mfu_sdk.integrations.accelerate import monitor

    gathers = 2 if name == "accelerate_gathering" else 1
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=gathers)
    model = _perceptron()
    optimizer = torch.optim.AdamW(model.parameters())
    loader = DataLoader(_rows(gathers * STEPS), batch_size=ROWS)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with monitor(accelerator, model, optimizer, name="ranks", **options) as run:
        for (batch,) in run.batches(loader):
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).square().mean())
                if gathers > 1 and not accelerator.sync_gradients:
                    _be_late()
                optimizer.step()
                optimizer.zero_grad()
    accelerator.wait_for_everyone()
    return run.summary()


def huggingface(_name: str, **options: Any) -> Any:
    """`Trainer`, with two evaluations."""
    import torch
    from torch.utils.data import Dataset
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    from mfu_sdk.integrations.huggingface import MFUCallback

    class Tokens(Dataset[dict[str, torch.Tensor]]):
        def __init__(self, rows: int) -> None:
            self.ids = torch.randint(256, (rows, 32))

        def __len__(self) -> int:
            return len(self.ids)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": self.ids[index], "labels": self.ids[index]}

    class Late(TrainerCallback):
        def on_substep_end(self, *_: Any, **__: Any) -> None:
            _be_late()

    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=32, n_embd=64, n_layer=2, n_head=2))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            per_device_eval_batch_size=4, save_strategy="no", eval_strategy="steps", eval_steps=4, report_to=[],
            disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=arguments, train_dataset=Tokens(16 * STEPS), eval_dataset=Tokens(8), callbacks=[Late()]
        )
        measured = MFUCallback(name="ranks", **options).attach(trainer)
        trainer.train()
        trainer.accelerator.wait_for_everyone()
    return measured.summary()


def lightning(_name: str, **options: Any) -> Any:
    """A `Trainer` with two processes, which torchrun has started."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    from mfu_sdk.integrations.lightning import MFUCallback

    class Perceptron(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = _perceptron()

        def training_step(self, batch: Any, _index: int) -> Any:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    measured = MFUCallback(name="ranks", **options)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[measured],
    )  # fmt: skip
    trainer.fit(Perceptron(), DataLoader(_rows(STEPS), batch_size=ROWS))
    trainer.strategy.barrier()
    return measured.summary()


@pytest.mark.parametrize("name", FLOPS)
def test_two_ranks(name: str, run: Run, receiver: Receiver, tmp_path: Path) -> None:
    """One run with two ranks, each with its own MFU and both with that of all; together they count the whole batch."""
    pytest.importorskip({"accelerate_gathering": "accelerate", "huggingface": "transformers"}.get(name, name))
    said = run(
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
        __file__, name, tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, MFU_SPANS="all", ACCELERATE_USE_CPU="1", timeout=300,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    flops = FLOPS[name]
    for told in ranks:
        assert told["steps"] == [flops] * STEPS
        assert told["evaluated"] == ([GPT2 // 3] * 2 if name == "huggingface" else [])
        assert told["sum"] == pytest.approx(1, abs=1e-9)
        assert told["ranks"] == 2
        assert told["complete"]
        assert told["step_flops"] == 2 * flops or name == "huggingface"
        assert told["global_mfu"] == pytest.approx(
            sum(model for model, _ in told["each"]) / sum(available for _, available in told["each"])
        )
        assert not [note for note in told["notes"] if "counted" in note]
        assert None not in told["comm_s"]
    if name in ("accelerate_gathering", "huggingface"):
        # A rank that is late before the last micro-batch keeps the other waiting in its exchange, and itself nowhere.
        waiting, late = (told["bars"]["rank_skew"] / told["timed"] for told in ranks)
        assert waiting > 0.4 * LATE_S
        assert late < waiting / 2
        assert ranks[0]["bars"]["exposed_communication"] < ranks[0]["bars"]["rank_skew"]
    assert ranks[0]["each"] == ranks[1]["each"]
    assert [told["mfu"] for told in ranks] == [model / available for model, available in ranks[0]["each"]]
    found = [of for span, of in receiver.resources if span == "mfu.run"]
    assert {of["mfu.dist.rank"] for of in found} == {0, 1}
    assert {of["mfu.dist.world_size"] for of in found} == {2}
    assert len({of["mfu.run.id"] for of in found}) == 1
    by_rank = dict.fromkeys((0, 1), 0)
    for (span, attributes), (_, of) in zip(receiver.spans, receiver.resources, strict=True):
        if span == "mfu.step" and attributes["mfu.phase"] == "train":
            assert attributes["mfu.model.flop"] == flops
            by_rank[int(str(of["mfu.dist.rank"]))] += 1
    assert by_rank == {0: STEPS, 1: STEPS}


if __name__ == "__main__":
    be_a_rank(sys.argv[1], Path(sys.argv[2]))
