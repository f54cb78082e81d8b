"""Serve the trained GPT through a decorated handler: first one request at a time, then in batches.

    python examples/bytegpt/serve.py --weights /tmp/bytegpt.f32

Both ways answer the same prompts for the same time; what differs is how many share a call of the model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import text
import torch
from model import ByteGPT, Config, load
from torch import Tensor

import mfu_sdk as mfu

PROMPT, NEW = 64, 32


def handler(model: ByteGPT, name: str) -> Callable[[Tensor], Tensor]:
    """A request handler as a service would have it: prompts (batch, length) in, continuations out."""

    @mfu.inference(model, name=name, tokens=torch.Tensor.numel)
    def complete(prompts: Tensor) -> Tensor:
        out: Tensor = model.generate(prompts, NEW)
        return out

    return complete


def serve(complete: Callable[[Tensor], Tensor], prompts: Tensor, batch: int, seconds: float) -> None:
    """Answer `prompts`, `batch` at a time, for `seconds` and three requests at the least."""
    deadline = time.monotonic() + seconds
    served = 0
    while served < 3 * batch or time.monotonic() < deadline:
        start = served % (len(prompts) - batch + 1)
        complete(prompts[start : start + batch])
        served += batch
    print(complete.run.summary(), flush=True)  # type: ignore[attr-defined]  # set by the decorator


def main() -> None:
    """Parse the command line, serve both ways, print both summaries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="what train.py wrote with --save")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each of the two ways")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    model = load(Config(), options.weights, options.device)
    windows = text.Windows(text.read(), PROMPT, 64, seed=1)
    prompts = torch.stack([windows[i][:PROMPT] for i in range(len(windows))]).to(options.device)
    print("one request at a time", flush=True)
    serve(handler(model, "bytegpt-chat-single"), prompts, 1, options.seconds)
    print(f"{options.batch} requests in a batch", flush=True)
    serve(handler(model, "bytegpt-chat-batched"), prompts, options.batch, options.seconds)


if __name__ == "__main__":
    main()
