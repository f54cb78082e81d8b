"""Lightning: a small perceptron under a `Trainer` with our callback.

python examples/integrations/lightning_train.py
"""

from __future__ import annotations

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mfu_sdk.integrations.lightning import MFUCallback


class Perceptron(LightningModule):
    """Two layers; Lightning calls `training_step`, and that the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False))

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        """The loss of a batch."""
        loss: Tensor = self.net(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As Lightning asks for it."""
        return torch.optim.AdamW(self.parameters())


def main() -> None:
    """Parse the command line, train, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()

    torch.manual_seed(0)
    # This is the line that mfu_sdk asks for.
    measured = MFUCallback(name="lightning-mlp")
    trainer = Trainer(
        max_epochs=1, accumulate_grad_batches=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[measured],
    )  # fmt: skip
    rows = torch.randn(2 * options.steps * 16, 64)
    trainer.fit(Perceptron(), DataLoader(TensorDataset(rows), batch_size=16))
    print(measured.summary(), flush=True)


if __name__ == "__main__":
    main()
