"""What an intent of three numbers may be expected to reach: counts by hand, laws, and errors. No torch is needed."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.intent.forecast import expect
from mfu_sdk.intent.shape import DecoderShape
from mfu_sdk.intent.words import as_json, describe
from mfu_sdk.records import Expectation, Peaks, Rate

# 2 layers of 2·10² + 2·10·5 + 3·10·20 = 900 weights, and a table of 7 rows.
TINY = DecoderShape(params=1870, layers=2, hidden=10, kv_hidden=5, vocab=7)
LLAMA = {"params": 8.03e9, "layers": 32, "hidden": 4096, "kv_hidden": 1024, "vocab": 128256}


def rate(value: float) -> Rate:
    return Rate(value, value, value, "test", 0.0)


SLOW = Peaks("slow", {"bfloat16": rate(2e3)}, {"bfloat16": rate(1e3)}, rate(1e12), None, {})


def llama(**given: Any) -> Expectation:
    return expect(LLAMA, **({"device": "H100 SXM", "batch": 1, "seq": 4096} | given))


def test_a_decoder_from_three_numbers() -> None:
    """3 tokens: 2 · 900 · 3 FLOPs a layer and 4 · 10 · (1+2+3) of attention; thrice both in training."""
    count = TINY.count(1, 3, "train", "bfloat16")
    assert TINY.ffn == pytest.approx(20)
    assert count.model_flops == 3 * 2 * (5400 + 240)
    assert (count.attention_flops_exact, count.attention_flops_full) == (3 * 2 * 240, 3 * 2 * 4 * 10 * 9)
    # Flash attention computes its scores again: 10 where the model needs 8.
    assert count.hardware_flops == 2 * (3 * 5400 + 240 + 600)
    # Weights once and what goes in and out: q, k, v, o, gate, up, down take 9·10 + 2·5 + 3·20 numbers a token.
    assert [(op.op, op.bytes_moved, op.calls) for op in count.ops[:3]] == [
        ("products", 2 * (900 + 160 * 3), 2),
        ("attention", 2 * (2 * 10 * 3 + 2 * 5 * 3), 2),
        ("pointwise", 2 * 170 * 3, 2),
    ]


def test_a_decoded_token_reads_the_whole_cache() -> None:
    """One token each of 4 sequences, with 100 keys and values of 5 numbers; no FLOPs but for them."""
    count = TINY.count(4, 100, "decode", "bfloat16")
    assert count.model_flops == 2 * (2 * 900 * 4 + 4 * 10 * 400)
    assert [op.bytes_moved for op in count.ops[:2]] == [2 * (900 + 160 * 4), 2 * 4 * (2 * 10 + 2 * 5 * 100)]


def test_a_step_by_hand() -> None:
    """At 1 kFLOP/s with memory to spare: the hardware FLOPs of a training step, over a headline of 2 kFLOP/s."""
    e = expect(TINY, device=SLOW, batch=1, seq=3)
    assert e.time_s == pytest.approx(2 * (3 * 5400 + 840) / 1e3, rel=1e-6)
    assert e.mfu == pytest.approx(3 * 2 * 5640 / (2e3 * e.time_s))
    assert (e.bound, e.devices, e.tokens_per_s) == ("compute", 1, pytest.approx(3 / e.time_s))


def test_recomputation_runs_the_forward_again() -> None:
    """Another forward's 2 · 5640 FLOPs, and none of them are the model's."""
    plain = expect(TINY, device=SLOW, batch=1, seq=3)
    again = expect(TINY, device=SLOW, batch=1, seq=3, recompute=True)
    assert again.time_s - plain.time_s == pytest.approx(2 * 5640 / 1e3, rel=1e-6)
    assert again.mfu * again.time_s == pytest.approx(plain.mfu * plain.time_s)


def test_gpus_share_a_replica() -> None:
    """Two stages of two micro-batches: half of the work each, and (2−1)/2 of it idle. MFU falls by a third."""
    peaks = Peaks("slow", SLOW.theoretical, SLOW.achievable, SLOW.memory, None, {})
    one = expect(TINY, device=peaks, batch=2, seq=3, microbatches=2)
    two = expect(TINY, device=peaks, batch=2, seq=3, pp=2)
    assert two.time_s == pytest.approx(one.time_s / 2 * 1.5, rel=1e-3)
    assert two.bubble_s == pytest.approx(two.time_s / 3)
    assert two.mfu == pytest.approx(one.mfu / 1.5, rel=1e-3)
    # Nothing is known of the wire between them.
    assert two.missing == ("pipeline sends of 240 bytes",)
    assert (two.high_s, two.low_mfu) == (None, None)


def test_decode_is_bound_by_memory() -> None:
    """The weights of 7.5 billion parameters and 32 · 4096 keys and values, at 2,960 GB/s: MBU 1, next to no MFU."""
    e = llama(phase="decode")
    weights, cache = 2 * (8.03e9 - 128256 * 4096), 2 * 32 * 2 * 1024 * 4096
    assert e.bytes_moved == pytest.approx(weights + cache, rel=2e-3)
    assert e.bound == "memory"
    assert e.time_s == pytest.approx((weights + cache) / 2960e9, rel=5e-3)
    assert e.mbu == pytest.approx(1.0)
    assert e.mfu < 0.005


def test_training_is_bound_by_compute() -> None:
    """And so is prefill; below one half of the peak that is possible only where something else is in the way."""
    for phase in ("train", "prefill"):
        e = llama(phase=phase, batch=4)
        assert e.bound == "compute"
        assert 0.5 < e.mfu < 0.8


def test_batches_raise_mfu_of_decode_until_it_computes() -> None:
    """With a short cache: up with every doubling while memory binds, until arithmetic does."""
    steps = [llama(phase="decode", seq=1, batch=2**i) for i in range(14)]
    memory = [e for e in steps if e.bound == "memory"]
    assert [e.mfu for e in memory] == sorted(e.mfu for e in memory)
    assert all(e.mfu > before.mfu * 1.2 for before, e in itertools.pairwise(steps[:8]))
    assert (steps[0].bound, steps[-1].bound) == ("memory", "compute")
    assert steps[-1].mfu == pytest.approx(762 / 989.4, rel=0.1)


def test_eight_bits_are_faster() -> None:
    """Training in fp8 beats bf16 in time by less than two; decoding reads half of the weights."""
    bf16, fp8 = llama(batch=4), llama(batch=4, dtype="float8_e4m3fn")
    assert 1.2 < bf16.time_s / fp8.time_s < 2
    # Held against bf16's peak, as published MFU is.
    assert fp8.peak_dtype == "bfloat16"
    tokens, half = llama(phase="decode", seq=1), llama(phase="decode", seq=1, dtype="float8_e4m3fn")
    assert tokens.time_s / half.time_s == pytest.approx(2, rel=0.01)


def test_more_gpus_share_more() -> None:
    """64 GPUs are FSDP, which says so: each has 1/64 of the optimizer's 225 GB to move, and 47 GB to gather or scatter.

    Eight adapters of 50 GB/s carry these at 72.5 %; the interval reaches from all of it hidden to none.
    """
    one, many = llama(batch=4, recompute=True), llama(batch=4, gpus=64, recompute=True)
    assert many.devices == 64
    optimizer = 28 * 8.03e9 * 63 / 64 / 2960e9
    assert one.time_s - (many.time_s - many.communication_s) == pytest.approx(optimizer, rel=0.01)
    assert many.hidden_s + many.communication_s == pytest.approx(3 * 63 / 64 * 2 * 8.03e9 / 290e9, rel=0.05)
    assert any("FSDP" in said for said in many.assumptions)
    assert one.low_mfu is not None
    assert many.low_mfu is not None
    assert many.low_mfu < one.low_mfu


def test_memory_that_does_not_hold_it_is_said() -> None:
    """8 billion parameters want 16 bytes each to be trained: more than the 80 GB of one, less than those of 8."""
    alone, sharded = llama(recompute=True), llama(gpus=8, recompute=True)
    assert any("it does not fit" in said for said in alone.assumptions)
    assert any("about 17.1 of 80 GB" in said and "it fits" in said for said in sharded.assumptions)


@given(st.integers(1, 64), st.integers(1, 4096), st.sampled_from(["train", "prefill", "decode"]), st.booleans())
def test_a_faster_device_never_takes_longer(batch: int, seq: int, phase: str, memory: bool) -> None:
    """Twice the rate of arithmetic, or of memory: no end of the interval grows, and each contains the value."""

    def peaks(flops: float, bytes_per_s: float) -> Peaks:
        wide = Rate(flops, flops / 2, flops * 2, "test", 0.0)
        return Peaks("x", {"bfloat16": rate(4e6)}, {"bfloat16": wide}, rate(bytes_per_s), None, {})

    slow = expect(TINY, device=peaks(1e6, 1e6), batch=batch, seq=seq, phase=phase)
    fast = expect(TINY, device=peaks(1e6, 2e6) if memory else peaks(2e6, 1e6), batch=batch, seq=seq, phase=phase)
    for e in (slow, fast):
        assert (e.low_s or 0) <= e.time_s <= (e.high_s or 0)
    assert fast.time_s <= slow.time_s
    assert (fast.high_s or 0) <= (slow.high_s or 0)


def test_on_one_screen() -> None:
    """Time, MFU with its interval, MBU, what binds, tokens, five operators, and what was assumed."""
    text = describe(llama(gpus=64, tp=8), "an intent")
    for word in ("an intent", "time ", "MFU ", "MBU ", "bound ", "tokens ", "assumes ", "tensor parallel", " .. "):
        assert word in text
    assert len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) < 130
    plain = json.loads(json.dumps(as_json(llama())))
    assert plain["bound"] == "compute"
    assert len(plain["ops"]) == 5


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"phase": "serve"}, r"phase='serve': must be one of train, prefill, decode"),
        ({"dtype": "bf16"}, r"dtype='bf16': must be one of float32, bfloat16"),
        ({"batch": None}, r"batch=None, seq=4096: both must be given"),
        ({"seq": 0}, r"batch=1, seq=0: both must be given, 1 or more"),
        ({"recompute": True, "phase": "decode"}, r"only training recomputes"),
        ({"device": "H100"}, r"may be any of"),
        ({"gpus": 4, "ep": 2}, r"ep=2: the model has no experts that are known"),
        ({"device": "T4"}, r"device='T4': no rate is known of products in bfloat16; run `mfu calibrate`"),
        ({"device": Peaks("mine", {"bfloat16": rate(1.0)}, {}, None, None, {})}, r"'mine': no rate is known of memory"),
    ],
)
def test_errors(given: dict[str, Any], told: str) -> None:
    """The value, the rule and the remedy."""
    with pytest.raises(ConfigurationError, match=told):
        llama(**given)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            {"params": 1e9, "layers": 2},
            r"a model with params, layers: needs a model_type, or params, layers and hidden",
        ),
        ({"params": 1e9, "layers": 2, "hidden": 64, "heads": 4}, r"with params, layers, hidden, heads"),
        ({"params": 100, "layers": 2, "hidden": 64}, r"params=100: fewer than attention alone has in 2 layers of 64"),
        ({"params": 0, "layers": 2, "hidden": 64}, r"each must be above 0"),
        (7, r"a int is no model"),
    ],
)
def test_what_is_no_model(model: Any, told: str) -> None:
    """So for the model."""
    with pytest.raises(ConfigurationError, match=told):
        expect(model, device=SLOW, batch=1, seq=3)


def test_a_count_is_one_devices_work() -> None:
    """What ran is held to the device as it is; it cannot be shared."""
    count = TINY.count(1, 3, "train", "bfloat16")
    assert expect(count, device=SLOW).time_s == pytest.approx(2 * (3 * 5400 + 840) / 1e3, rel=1e-6)
    with pytest.raises(ConfigurationError, match="a Count is one device's work already"):
        expect(count, device=SLOW, gpus=2)
