"""Parallel layouts: what they exchange and how long they stand idle, by the textbooks' formulas."""

from dataclasses import replace

import pytest

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.intent.layout import Layout, Sizes, Wires, exchanges, laid_out
from mfu_sdk.records import Rate

MODEL = Sizes(params=8_000_000, layers=4, hidden=100, kv=50, element_bytes=2, batch=6, tokens=1000)


def rate(bytes_per_s: float) -> Rate:
    return Rate(bytes_per_s, bytes_per_s, bytes_per_s, "test", 0.0)


# Slow enough that latency, some microseconds a call, is beneath what is compared.
WIRES = Wires(rate(1e4), rate(1e3))


def seconds(
    layout: Layout, *, training: bool = True, recompute: bool = False, wires: Wires = WIRES
) -> dict[str, float]:
    found, missing = exchanges(layout, MODEL, wires, training=training, recompute=recompute)
    assert missing == ()
    return {each.name: each.time.value for each in found}


def test_fsdp_moves_three_halves_of_data_parallel() -> None:
    """Two gathers and one scatter of 16 MB among 8: 7/8 of it each, at 10 kB/s. A pipeline's ZeRO-1 gathers once."""
    one = 7 / 8 * 16e6 / 1e4
    assert seconds(Layout(dp=8)) == pytest.approx({"all_gather between 8 GPUs": 2 * one,
                                                   "reduce_scatter between 8 GPUs": one}, rel=1e-4)  # fmt: skip
    # Of a stage's half of the parameters, from node to node, and a pipeline's sends beside it.
    staged = seconds(Layout(dp=4, pp=2, microbatches=6))
    half = 3 / 4 * 8e6 / 1e4
    assert staged["all_gather between 4 GPUs"] == pytest.approx(half, rel=1e-4)
    assert staged["reduce_scatter between 4 GPUs"] == pytest.approx(half, rel=1e-4)


def test_each_micro_batch_gathers_anew() -> None:
    """FSDP in three parts of a step moves three times as much."""
    one, three = seconds(Layout(dp=8)), seconds(Layout(dp=8, microbatches=3))
    for name, value in one.items():
        assert three[name] == pytest.approx(3 * value, rel=1e-4)


def test_tensor_parallel() -> None:
    """Four all-reduces a layer of 6 × 1000 × 100 numbers of two bytes among 2, whose factor is 1; six if recomputed."""
    assert seconds(Layout(tp=2)) == pytest.approx({"all_reduce between 2 GPUs": 4 * 4 * 1.2e6 / 1e4}, rel=1e-4)
    again = seconds(Layout(tp=2), recompute=True)
    assert again == pytest.approx({"all_reduce between 2 GPUs": 6 * 4 * 1.2e6 / 1e4}, rel=1e-4)
    forward = seconds(Layout(tp=2), training=False)
    assert forward == pytest.approx({"all_reduce between 2 GPUs": 2 * 4 * 1.2e6 / 1e4}, rel=1e-4)


def test_pipeline() -> None:
    """Six micro-batches of 200 kB go forth and back within a node, in as many pieces more as stages are interleaved."""
    assert seconds(Layout(pp=2, microbatches=6)) == pytest.approx({"pipeline sends": 12 * 2e5 / 1e4})
    assert seconds(Layout(pp=2, microbatches=6, interleave=2)) == pytest.approx({"pipeline sends": 24 * 2e5 / 1e4})


def test_context_parallel() -> None:
    """Keys and values of 500 tokens go round once forward, twice backward, in each of four layers; FSDP beside it."""
    found = seconds(Layout(cp=2))
    assert found["context sends"] == pytest.approx(3 * 4 * (2 * 6 * 500 * 50 * 2) / 1e4)
    assert found["all_gather between 2 GPUs"] == pytest.approx(2 * 16e6 / 2 / 1e4, rel=1e-4)


@pytest.mark.parametrize(
    ("pp", "microbatches", "interleave", "share"), [(4, 8, 1, 3 / 11), (4, 8, 2, 3 / 19), (1, 1, 1, 0)]
)
def test_bubble(pp: int, microbatches: int, interleave: int, share: float) -> None:
    """Of the whole time (p−1)/(v·m+p−1): three of eleven slots stand empty."""
    bubble = Layout(pp=pp, microbatches=microbatches, interleave=interleave).bubble
    assert bubble / (1 + bubble) == pytest.approx(share)


def test_wires() -> None:
    """Within a node its link; across, the adapters of a group's GPUs in a node together, but no more than the link."""
    assert WIRES.of(8, 1) == (WIRES.within, 1)
    assert WIRES.of(4, 2) == (WIRES.within, 1)
    for ranks, stride, bytes_per_s, nodes in ((16, 1, 8e3, 2), (64, 4, 2e3, 32), (4, 8, 1e3, 4)):
        bus, found = WIRES.of(ranks, stride)
        assert bus is not None
        assert (bus.bytes_per_s, found) == (bytes_per_s, nodes)
    bus, _ = Wires(rate(1e4), rate(2e3)).of(16, 1)
    assert bus is not None
    assert bus.bytes_per_s == 1e4


def test_an_unknown_wire_is_said() -> None:
    """No network is known: what would go over it is missing, with its size."""
    found, missing = exchanges(Layout(dp=16), MODEL, Wires(rate(1e4), None), training=True, recompute=False)
    assert found == ()
    assert missing == (
        "all_gather between 16 GPUs of 32,000,000 bytes",
        "reduce_scatter between 16 GPUs of 16,000,000 bytes",
    )


def test_small_messages_wait_for_latency() -> None:
    """Fast wires: 8 all-reduces among 8 take 6.6 µs and a tree's 2 · 3 hops of 0.6 µs each."""
    fast = Wires(rate(1e18), rate(1e18))
    found = seconds(Layout(tp=8), training=False, wires=fast)
    assert found == pytest.approx({"all_reduce between 8 GPUs": 8 * (6.6e-6 + 2 * 3 * 0.6e-6)}, rel=1e-4)


def test_what_is_left_over_is_data_parallel() -> None:
    """64 GPUs of which 4 × 2 share a replica have 8 replicas, whose pipelines run a sequence at a time."""
    assert laid_out(64, None, 4, 2, 1, 16, None, 1) == Layout(dp=8, tp=4, pp=2, microbatches=16)
    assert laid_out(None, 3, 1, 1, 1, 16, None, 1) == Layout(dp=3)
    assert laid_out(None, None, 1, 1, 1, 16, None, 1).gpus == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((6, None, 4, 1, 1, 8, None, 1), r"gpus=6: must be a multiple of tp × pp × cp = 4"),
        ((6, 2, 1, 1, 1, 8, None, 1), r"gpus=6: must be dp × tp × pp × cp = 2"),
        ((None, None, 0, 1, 1, 8, None, 1), r"tp=0: must be 1 or more"),
        ((None, None, 1, 1, 1, 8, 3, 1), r"microbatches=3: must divide the batch of 8"),
        ((None, None, 1, 1, 1, 8, None, 2), r"interleave=2: needs a pipeline"),
    ],
)
def test_numbers_that_do_not_go_together(given: tuple[int, ...], told: str) -> None:
    """Each says the value, the rule and what to do."""
    with pytest.raises(ConfigurationError, match=told):
        laid_out(*given)


def test_expert_parallel() -> None:
    """Tokens to their two experts and back, four times in two layers, 3/4 of them elsewhere; fewer replicas of experts.

    6 million of the 8 million parameters are experts, of which each of four GPUs holds a quarter, in two replicas that
    are four GPUs apart.
    """
    model = replace(MODEL, experts=6_000_000, expert_layers=2, top_k=2)
    found, missing = exchanges(Layout(dp=8, ep=4), model, WIRES, training=True, recompute=False)
    assert missing == ()
    times = [(each.name, each.time.value) for each in found]
    sent = 6 * 1000 * 2 * 100 * 2
    assert times == [
        ("all_gather between 8 GPUs", pytest.approx(2 * 7 / 8 * 4e6 / 1e4, rel=1e-4)),
        ("reduce_scatter between 8 GPUs", pytest.approx(7 / 8 * 4e6 / 1e4, rel=1e-4)),
        ("all_gather between 2 GPUs", pytest.approx(2 * 1 / 2 * 3e6 / 1e4, rel=1e-4)),
        ("reduce_scatter between 2 GPUs", pytest.approx(1 / 2 * 3e6 / 1e4, rel=1e-4)),
        ("all_to_all between 4 GPUs", pytest.approx(4 * 2 * 3 / 4 * sent / 1e4, rel=1e-4)),
    ]
    served, _ = exchanges(Layout(dp=8, ep=4), model, WIRES, training=False, recompute=False)
    assert [(each.name, each.calls) for each in served] == [("all_to_all between 4 GPUs", 4)]


def test_tokens_that_leave_their_node() -> None:
    """Of 16 GPUs in two nodes half of the tokens go through each GPU's own adapter, 7/16 over the link beside them."""
    model = replace(MODEL, experts=6_000_000, expert_layers=1, top_k=1)
    found, _ = exchanges(Layout(dp=16, ep=16), model, WIRES, training=False, recompute=False)
    [sent] = [each for each in found if each.name.startswith("all_to_all")]
    assert sent.time.value == pytest.approx(2 * 6 * 1000 * 100 * 2 * 8 / 16 / 1e3, rel=1e-4)
    assert sent.beside == "none"
    _, missing = exchanges(Layout(dp=16, ep=16), model, Wires(WIRES.within, None), training=False, recompute=False)
    assert missing == ("all_to_all between 16 GPUs of 2,400,000 bytes",)
    _, missing = exchanges(Layout(dp=8, ep=4), replace(model, top_k=0), WIRES, training=False, recompute=False)
    assert missing == ("expert parallel all-to-alls: the model's width or its experts are not known",)


def test_experts_need_replicas() -> None:
    """They are shared out among data-parallel GPUs."""
    with pytest.raises(ConfigurationError, match="ep=8: must divide the 4 data-parallel GPUs"):
        laid_out(4, None, 1, 1, 1, 1, None, 1, 8)
    assert str(laid_out(8, None, 2, 1, 1, 1, None, 1, 2)) == "8 GPUs (dp 4, tp 2, ep 2)"
