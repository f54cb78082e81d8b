"""Stream the trained GPT's answers to several clients at once, from one thread and one event loop.

    python examples/bytegpt/stream.py --weights /tmp/bytegpt.f32 --clients 4

Each answer is one request, from its first byte to its last; the device's time counts once however many overlap. All
clients' sequences would fit into one call of the model, and each has a call of its own: the server says what would fit
(`load=`), so that its provider can see what that costs.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator

import text
import torch
from model import ByteGPT, Config, load
from torch import Tensor

import mfu_sdk as mfu

PROMPT, NEW = 64, 32


async def answers(model: ByteGPT, prompt: Tensor) -> AsyncIterator[str]:
    """Continue `prompt` (length) byte by byte; other clients have their turn after each."""
    with torch.no_grad():
        logits, cache = model(prompt[None])
    for left in reversed(range(NEW)):
        token = logits[:, -1].argmax(dim=-1, keepdim=True)
        yield chr(int(token))
        await asyncio.sleep(0)
        if left:
            with torch.no_grad():
                logits, cache = model(token, cache)


async def serve(model: ByteGPT, prompts: Tensor, clients: int) -> None:
    """Answer two prompts of each of `clients` clients, and print what came of it."""
    asking = 0

    def load() -> mfu.Load:
        # The cache has room for all clients' contexts, and nobody waits to be begun.
        free = 1 - asking * (PROMPT + NEW) / (clients * model.config.context)
        return mfu.Load(batch_feasible=clients, queue_waiting=0, kv_cache_free_ratio=free)

    handle = mfu.inference(model, name="bytegpt-stream", tokens=len, load=load)(answers)
    # Else the first client would wait while the device's peak is measured.
    handle.run.open()  # type: ignore[attr-defined]  # set by the decorator

    async def client(number: int) -> str:
        nonlocal asking
        asking += 1
        texts = ["".join([byte async for byte in handle(model, prompts[2 * number + i])]) for i in range(2)]
        asking -= 1
        return texts[-1]

    last = await asyncio.gather(*map(client, range(clients)))
    print(repr(last[0]), flush=True)
    print(handle.run.close(), flush=True)  # type: ignore[attr-defined]  # as above


def main() -> None:
    """Parse the command line, serve, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="what train.py wrote with --save")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model = load(Config(), options.weights, options.device)
    windows = text.Windows(text.read(), PROMPT, 2 * options.clients, seed=1)
    prompts = torch.stack([windows[i][:PROMPT] for i in range(len(windows))]).to(options.device)
    asyncio.run(serve(model, prompts, options.clients))


if __name__ == "__main__":
    main()
