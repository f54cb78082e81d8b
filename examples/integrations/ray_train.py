"""Ray Train: two workers train a small model side by side, each measured; what they report has `mfu` in it.

python examples/integrations/ray_train.py --workers 2
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

from mfu_sdk.integrations.ray import monitor


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """What every worker does."""
    model = prepare_model(nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False)))
    optimizer = torch.optim.AdamW(model.parameters())
    with monitor(model) as worker:
        for _ in range(config["epochs"]):
            for _ in range(config["steps"]):
                loss = model(torch.randn(16, 64)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            worker.report({"loss": loss.item()})
    if get_context().get_world_rank() == 0:
        # Ray shows it where the driver runs.
        print(worker.run.summary(), flush=True)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="of each epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--storage", help="where Ray keeps its results")
    options = parser.parse_args()
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"steps": options.steps, "epochs": options.epochs},
        scaling_config=ScalingConfig(num_workers=options.workers),
        run_config=RunConfig(name="ray-mlp", storage_path=options.storage),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
