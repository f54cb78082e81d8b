"""Accelerate: a prepared loop that gathers two micro-batches a step, measured.

accelerate launch --cpu examples/integrations/accelerate_train.py
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mfu_sdk.integrations.accelerate import monitor


def main() -> None:
    """Parse the command line, train, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()

    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())
    loader = DataLoader(TensorDataset(torch.randn(2 * options.steps * 16, 64)), batch_size=16)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    # These are the lines that mfu_sdk asks for: `with` and `batches`.
    with monitor(accelerator, model, optimizer, name="accelerate-mlp") as run:
        for (batch,) in run.batches(loader):
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).square().mean())
                optimizer.step()
                optimizer.zero_grad()
    accelerator.print(run.summary())


if __name__ == "__main__":
    main()
