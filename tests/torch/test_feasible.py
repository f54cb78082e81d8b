"""The expectation at the batch that would fit: weights told apart in counted work, and from requests to steps."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.counting.dispatch import count
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.requests import Load

from .conftest import Sink

PEAKS = Peaks(
    "cpu",
    {},
    {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)},
    Rate(1e9, 1e9, 1e9, "user", 0.0),
    None,
    {},
)


def product() -> object:
    return torch.ones(2, 64) @ torch.ones(64, 32)


def with_bias() -> object:
    return functional.linear(torch.ones(2, 64), torch.ones(32, 64), torch.ones(32))


def image() -> object:
    return functional.conv2d(torch.ones(2, 3, 8, 8), torch.ones(5, 3, 3, 3), torch.ones(5))


def attention() -> object:
    return torch.bmm(torch.ones(2, 4, 8), torch.ones(2, 8, 4))


def look_up() -> object:
    return functional.embedding(torch.tensor([1, 2]), torch.ones(100, 16))


def norm() -> object:
    return functional.layer_norm(torch.ones(2, 64), (64,), torch.ones(64), torch.ones(64))


@pytest.mark.parametrize(
    ("work", "numbers"),
    [
        (product, 64 * 32),
        (with_bias, 64 * 32 + 32),
        (image, 5 * 3 * 3 * 3 + 5),
        (attention, 0),
        (look_up, 0),
        (norm, 128),
    ],
)
def test_weights_of_operators(work: Callable[[], object], numbers: int) -> None:
    """What is read whatever the batch: a product's right-hand side, a kernel, what is added to every row."""
    with torch.no_grad():
        found = count(work)
    assert sum(op.weight_bytes * op.calls for op in found.ops) == 4 * numbers


def test_what_would_fit_is_on_the_steps(clock: testing.FakeClock, sink: Sink) -> None:
    """Two rows in each call where eight would fit.

    A call of n rows does 2·n·64·32 FLOPs and moves the weights' 8,192 bytes and 4·(64 + 32)·n more, at 10⁹ bytes/s
    longer than at 10¹² FLOP/s: 8.96 µs with two rows, 11.264 with eight.
    """
    model = nn.Linear(64, 32, bias=False)

    @mfu.inference(model, load=lambda: Load(batch_feasible=8), peaks=PEAKS)
    def handle() -> None:
        with torch.no_grad():
            for _ in range(3):
                model(torch.zeros(2, 64))
                clock.advance(1e-3)

    handle.run.open()
    handle.run.load.sample()
    for _ in range(2):
        handle()
    handle.run.close()
    counted, step = sink.steps
    assert counted.count_source == "measured"
    assert step.expected_mfu == pytest.approx(2 * 2 * 64 * 32 / (1e12 * 8.96e-6))
    assert step.expected_feasible_mfu == pytest.approx(2 * 8 * 64 * 32 / (1e12 * 11.264e-6))
    # Whoever gives a peak without an interval is sure of it.
    assert step.expected_low_mfu == step.expected_mfu == step.expected_high_mfu


def test_without_a_load_nothing_would_fit(clock: testing.FakeClock, sink: Sink) -> None:
    """Nobody has said how many would fit: unknown, and nothing is kept for it."""
    model = nn.Linear(64, 32, bias=False)

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> None:
        with torch.no_grad():
            model(torch.zeros(2, 64))
        clock.advance(1e-3)

    for _ in range(2):
        handle()
    handle.run.close()
    assert [step.expected_feasible_mfu for step in sink.steps] == [None, None]
    assert sink.steps[-1].expected_mfu is not None
