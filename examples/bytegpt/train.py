"""Train the byte-level GPT on the standard library's sources, watched by mfu_sdk.

    python examples/bytegpt/train.py --steps 48 --save /tmp/bytegpt.f32

With OTEL_EXPORTER_OTLP_ENDPOINT set, every step is sent there.
"""

from __future__ import annotations

import argparse
import time

import text
import torch
import torch.nn.functional as F
from model import ByteGPT, Config, save
from torch.utils.data import DataLoader

import mfu_sdk as mfu


def main() -> None:
    """Parse the command line, train, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0, help="stop after this long, whatever --steps says")
    parser.add_argument("--name", default="bytegpt-train")
    parser.add_argument("--save", help="write the weights here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    config = Config()
    model = ByteGPT(config).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    windows = text.Windows(text.read(), config.context, options.steps * options.batch)
    loader = DataLoader(windows, batch_size=options.batch)
    deadline = time.monotonic() + options.seconds

    # These are the lines that mfu_sdk asks for: `with`, `batches`, `step`, and printing what came of it.
    with mfu.monitor(model, name=options.name) as run:
        for index, batch in enumerate(run.batches(loader)):
            inputs, targets = batch[:, :-1].to(options.device), batch[:, 1:].to(options.device)
            with run.step(tokens=inputs.numel(), samples=len(inputs)):
                logits, _ = model(inputs)
                loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if index % 8 == 0:
                print(f"step {index:3d}/{options.steps}  loss {loss.item():.3f}", flush=True)
            if time.monotonic() > deadline:
                break
    print(run.summary(), flush=True)
    if options.save:
        save(model, options.save)


if __name__ == "__main__":
    main()
