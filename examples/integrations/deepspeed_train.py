"""DeepSpeed: train a small model with ZeRO, two micro-batches a step, and measure it.

torchrun --nproc-per-node=2 examples/integrations/deepspeed_train.py --stage 2
"""

from __future__ import annotations

import argparse
import os

import deepspeed
import torch
from torch import nn

from mfu_sdk.integrations.deepspeed import monitor


def main() -> None:
    """Parse the command line, train, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--stage", type=int, default=1, choices=[0, 1, 2, 3], help="of ZeRO")
    parser.add_argument("--checkpoint", help="write one here after the fourth step")
    options = parser.parse_args()
    # A process on its own is rank 0 of 1.
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29599"}
    for variable, value in alone.items():
        os.environ.setdefault(variable, value)
    if not torch.cuda.is_available():
        # Its shared memory for processors takes minutes to compile, and gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False))
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        config={
            "train_micro_batch_size_per_gpu": 16,
            "gradient_accumulation_steps": 2,
            "zero_optimization": {"stage": options.stage},
        },
    )

    with monitor(engine, name="deepspeed-mlp") as run:
        for index in range(2 * options.steps):
            inputs = torch.randn(16, 64, device=engine.device)
            loss = engine(inputs).square().mean()
            engine.backward(loss)
            engine.step()
            if options.checkpoint and index == 7:
                engine.save_checkpoint(options.checkpoint)
    if engine.global_rank == 0:
        print(run.summary(), flush=True)
    engine.destroy()


if __name__ == "__main__":
    main()
