"""Serve the trained GPT through a decorated handler: first one request at a time, then in batches.

    python examples/bytegpt/serve.py --weights /tmp/bytegpt.f32

Both ways answer the same prompts for the same time; what differs is how many share a call of the model. The server
has room for `--batch` of them, and says so (`load=`), which only it can: so its provider sees what one at a time costs.
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


def handler(model: ByteGPT, name: str, room: int) -> Callable[[Tensor], Tensor]:
    """A request handler as a service would have it: prompts (batch, length) in, continuations out.

    `room` is how many sequences of the model's context its key-value cache may hold.
    """
    held = 0

    def load() -> mfu.Load:
        free = 1 - held * (PROMPT + NEW) / (room * model.config.context)
        # Who asks waits for the answer before asking again, so that nobody stands in a queue.
        return mfu.Load(batch_feasible=room, queue_waiting=0, kv_cache_free_ratio=free)

    @mfu.inference(model, name=name, tokens=torch.Tensor.numel, load=load)
    def complete(prompts: Tensor) -> Tensor:
        nonlocal held
        held = len(prompts)
        try:
            out: Tensor = model.generate(prompts, NEW)
        finally:
            held = 0
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
    # What it has to tell is delivered while the process goes on, and not in the two seconds that an exit may take.
    print(complete.run.close(), flush=True)  # type: ignore[attr-defined]  # set by the decorator


def main() -> None:
    """Parse the command line, serve both ways, print both summaries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="what train.py wrote with --save")
    parser.add_argument("--batch", type=int, default=16, help="as many as the server has room for")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each of the two ways")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    model = load(Config(), options.weights, options.device)
    windows = text.Windows(text.read(), PROMPT, 64, seed=1)
    prompts = torch.stack([windows[i][:PROMPT] for i in range(len(windows))]).to(options.device)
    print("one request at a time", flush=True)
    serve(handler(model, "bytegpt-chat-single", options.batch), prompts, 1, options.seconds)
    print(f"{options.batch} requests in a batch", flush=True)
    serve(handler(model, "bytegpt-chat-batched", options.batch), prompts, options.batch, options.seconds)


if __name__ == "__main__":
    main()
