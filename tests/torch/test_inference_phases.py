"""Prefill and decode by the model's own calls, what each could reach, and the times of tokens."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.run.phases import CallShape, phase_of, shape_of

from .conftest import Sink

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/bytegpt"))
from model import ByteGPT, Config

# 10 FLOPs a byte: a product of few rows is bound by the memory, one of many is not.
PEAKS = Peaks("cpu", {}, {"float32": Rate(1e10, 1e10, 1e10, "user", 0.0)}, Rate(1e9, 1e9, 1e9, "user", 0.0), None, {})
CONFIG = Config(layers=2, heads=2, width=32, context=64)


def gpt_flops(batch: int, past: int, new: int) -> int:
    """Of one call of the GPT: qkv, projection and perceptron of each layer, the causal score pairs, and the head."""
    w = CONFIG.width
    products = CONFIG.layers * (w * 3 * w + w * w + 8 * w * w) + w * CONFIG.vocab
    pairs = new * past + new * (new + 1) // 2
    return batch * (2 * new * products + CONFIG.layers * 4 * w * pairs)


@pytest.fixture
def gpt() -> ByteGPT:
    torch.manual_seed(0)
    return ByteGPT(CONFIG).eval()


def test_a_completion_by_hand(gpt: ByteGPT, clock: testing.FakeClock, sink: Sink) -> None:
    """One call of the prompt, then one a token: FLOPs, time and tokens of either phase, on steps and on the request."""
    prompt, new = 20, 5
    ticking = gpt.head.register_forward_hook(lambda _module, args, _out: clock.advance(0.01 * args[0].shape[1]))

    @mfu.inference(gpt, tokens=lambda out: (prompt * len(out), out.numel()), peaks=PEAKS)
    def complete(prompts: torch.Tensor) -> torch.Tensor:
        clock.advance(0.1)
        return gpt.generate(prompts, new)

    for _ in range(2):
        complete(torch.zeros(3, prompt, dtype=torch.long))
    complete.run.close()
    ticking.remove()
    prefill = gpt_flops(3, 0, prompt)
    decode = sum(gpt_flops(3, prompt + i, 1) for i in range(new - 1))
    first, second = sink.requests
    assert [(p.phase, p.model_flops, p.model_calls) for p in first.phases] == [
        ("prefill", prefill, 1),
        ("decode", decode, new - 1),
    ]
    assert first.model_flops == second.model_flops == prefill + decode
    assert [p.start_s for p in second.phases] == pytest.approx([0.1, 0.3])
    assert [p.duration_s for p in second.phases] == pytest.approx([0.2, 0.04])
    assert second.time_to_first_token_s == pytest.approx(0.3)
    assert second.time_per_output_token_s == pytest.approx(0.01)
    assert (second.input_tokens, second.output_tokens, second.tokens) == (60, 15, 75)
    assert [(s.phase, s.count_source, s.model_flops, s.tokens) for s in sink.steps] == [
        ("prefill", "measured", prefill, 0),
        ("decode", "measured", decode, 75),
        ("prefill", "cached", prefill, 0),
        ("decode", "cached", decode, 75),
    ]
    # What comes before the first call is the prompt's, and all of the time is somebody's.
    assert [s.duration_s for s in sink.steps[2:]] == pytest.approx([0.3, 0.04])
    assert sink.steps[2].batch_running == sink.steps[3].batch_running == 3


def test_decode_is_bound_by_the_memory(gpt: ByteGPT, clock: testing.FakeClock, sink: Sink) -> None:
    """The roofline allows a decode step far less than a prefill: a row of weights read for one product each."""

    @mfu.inference(gpt, peaks=PEAKS)
    def complete(prompts: torch.Tensor) -> torch.Tensor:
        out = gpt.generate(prompts, 3)
        clock.advance(0.1)
        return out

    for _ in range(2):
        complete(torch.zeros(1, 48, dtype=torch.long))
    complete.run.close()
    prefill, decode = sink.steps[2:]
    assert (prefill.phase, decode.phase) == ("prefill", "decode")
    assert prefill.expected_mfu is not None
    assert decode.expected_mfu is not None
    assert decode.arithmetic_intensity is not None
    # A product of one row with a weight in fp32 has 2 FLOPs for 4 bytes: half a FLOP a byte, of 10 at the ridge.
    assert decode.arithmetic_intensity < 0.5
    assert decode.expected_mfu < 0.5 / 10
    assert prefill.expected_mfu > 4 * decode.expected_mfu


def test_streams_are_timed_by_their_chunks(gpt: ByteGPT, clock: testing.FakeClock, sink: Sink) -> None:
    """To the first chunk with a token, then a mean over the others; what the consumer takes in between is his."""

    @mfu.inference(gpt, tokens=len, peaks=PEAKS)
    def stream() -> Iterator[str]:
        clock.advance(0.5)
        yield ""
        clock.advance(0.25)
        yield "a"
        clock.advance(0.125)
        yield "bc"
        clock.advance(0.25)
        yield "d"
        clock.advance(3.0)
        yield ""

    for _ in stream():
        clock.advance(1.0)
    stream.run.close()
    [request] = sink.requests
    # The empty chunk of a stream's head has no token, and its consumer's second counts: nobody has one yet.
    assert request.time_to_first_token_s == 0.5 + 1.0 + 0.25
    assert request.time_per_output_token_s == (0.125 + 0.25) / 3
    assert (request.tokens, request.output_tokens, request.input_tokens, request.chunks) == (4, 4, None, 5)
    assert request.duration_s == 0.5 + 0.25 + 0.125 + 0.25 + 3.0 + 5 * 1.0


def test_streams_without_tokens(gpt: ByteGPT, clock: testing.FakeClock, sink: Sink) -> None:
    """Where nobody counts tokens the first chunk after a call is timed, and the model's own calls give the rest."""
    ticking = gpt.head.register_forward_hook(lambda *_: clock.advance(0.5))

    @mfu.inference(gpt, peaks=PEAKS)
    def stream(prompts: torch.Tensor) -> Iterator[int]:
        with torch.no_grad():
            yield -1
            logits, cache = gpt(prompts)
            for _ in range(3):
                token = logits[:, -1].argmax(dim=-1, keepdim=True)
                yield int(token)
                logits, cache = gpt(token, cache)

    for _ in stream(torch.zeros(1, 20, dtype=torch.long)):
        clock.advance(0.25)
    stream.run.close()
    ticking.remove()
    [request] = sink.requests
    assert request.time_to_first_token_s == 0.25 + 0.5
    assert request.tokens is None
    # Three calls in three times (0.5 + 0.25) s, of which the consumer had all but one of four quarters … and the first.
    assert request.time_per_output_token_s == (3 * 0.75 - 4 * 0.25) / 3


@pytest.mark.parametrize("kind", ["dynamic", "static", "legacy", "default"])
def test_caches_of_transformers(kind: str, clock: testing.FakeClock, sink: Sink) -> None:
    """DynamicCache, StaticCache, tuples of keys and values, and the one that a call makes itself: told alike."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()

    class Legacy(nn.Module):
        """Gives and takes the cache as older releases did."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: torch.Tensor, past: Any = None) -> tuple[torch.Tensor, Any]:
            out = self.inner(ids, past_key_values=DynamicCache(past, config=config) if past else None)
            return out.logits, tuple((layer.keys, layer.values) for layer in out.past_key_values.layers)

    served: nn.Module = Legacy() if kind == "legacy" else model
    prompt = torch.zeros(2, 20, dtype=torch.long)

    @mfu.inference(served, peaks=PEAKS)
    def handle() -> None:
        with torch.no_grad():
            if kind == "legacy":
                _, past = served(prompt)
                for _ in range(3):
                    _, past = served(prompt[:, :1], past)
                return
            made: Any = {"dynamic": DynamicCache(config=config), "static": StaticCache(config, max_cache_len=64)}
            cache = made.get(kind)
            out = served(input_ids=prompt, past_key_values=cache)
            for _ in range(3):
                out = served(input_ids=prompt[:, :1], past_key_values=out.past_key_values)

    handle()
    handle()
    handle.run.close()
    assert [[(p.phase, p.model_calls) for p in request.phases] for request in sink.requests] == [
        [("prefill", 1), ("decode", 3)]
    ] * 2


def test_generate_of_transformers(clock: testing.FakeClock, sink: Sink) -> None:
    """`generate` as users call it, also with its prompt in pieces."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()

    @mfu.inference(model, peaks=PEAKS)
    def handle(**options: Any) -> None:
        model.generate(
            torch.ones(2, 40, dtype=torch.long),
            attention_mask=torch.ones(2, 40, dtype=torch.long),
            max_new_tokens=4,
            do_sample=False,
            **options,
        )

    handle()
    handle(prefill_chunk_size=20)
    handle.run.close()
    whole, pieces = sink.requests
    assert [(p.phase, p.model_calls) for p in whole.phases] == [("prefill", 1), ("decode", 3)]
    assert [(p.phase, p.model_calls) for p in pieces.phases] == [("prefill", 2), ("decode", 3)]
    assert whole.batch == pieces.batch == 2


def test_what_a_call_shows() -> None:
    """By hand: nothing cached is prefill, few tokens against a cache decode, many a later piece, no cache neither."""
    ids = torch.zeros(3, 20, dtype=torch.long)
    filled, empty = [(torch.zeros(3, 2, 7, 4),) * 2], [(torch.zeros(3, 2, 0, 4),) * 2]
    logits = torch.zeros(3, 20, 64)
    for args, output, expected in (
        ((ids,), (logits, filled), "prefill"),
        ((ids, empty), (logits, filled), "prefill"),
        ((ids[:, :1], empty), (logits, filled), "prefill"),
        ((ids[:, :1], filled), (logits, filled), "decode"),
        ((ids[:, :16], filled), (logits, filled), "decode"),
        ((ids[:, :17], filled), (logits, filled), "prefill"),
        ((ids,), logits, "inference"),
        ((ids, None), {"logits": logits}, "inference"),
        ((torch.zeros(3, 20),), torch.zeros(3, 2), "inference"),
    ):
        assert phase_of(shape_of(args, {}), output, prompted=False) == expected
    named = {"attention_mask": torch.ones(3, 27, dtype=torch.long), "input_ids": ids[:, :1], "past_key_values": filled}
    assert shape_of((), named) == CallShape(3, 1, "filled")
    # A cache on a device whose length cannot be read without waiting for it.
    unread = CallShape(3, 1, "unread")
    assert phase_of(unread, None, prompted=False) == "prefill"
    assert phase_of(unread, None, prompted=True) == "decode"


def test_speculation_and_later_turns(gpt: ByteGPT, clock: testing.FakeClock, sink: Sink) -> None:
    """Several tokens checked at once are decode without a time per token; a later prompt is prefill, not the first."""
    ticking = gpt.head.register_forward_hook(lambda *_: clock.advance(0.5))

    @mfu.inference(gpt, peaks=PEAKS)
    def handle() -> None:
        ids = torch.zeros(1, 20, dtype=torch.long)
        with torch.no_grad():
            _, cache = gpt(ids)
            _, cache = gpt(ids[:, :4], cache)
            gpt(ids, cache)

    handle()
    handle.run.close()
    ticking.remove()
    [request] = sink.requests
    assert [(p.phase, p.model_calls) for p in request.phases] == [("prefill", 2), ("decode", 1)]
    assert request.time_to_first_token_s == 0.5
    assert request.time_per_output_token_s is None
