"""Closed forms of the FLOPs of lengths that were never counted."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mfu_sdk as mfu
from mfu_sdk.counting.plan import signature
from mfu_sdk.records import Peaks, Rate, StepRecord
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.forms import Forms

PEAKS = Peaks("cpu", {}, {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)}, None, None, {})
EXAMPLE = Path(__file__).parents[2] / "examples" / "bytegpt"
MODULE = nn.Linear(1, 1)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import model

    yield model
    sys.modules.pop("model", None)


def demand(flops: int) -> Demand:
    return Demand(flops, 2 * flops, {"float32": flops}, 0, 0, 10 * flops, 10.0 * flops, flops / 1e3, "cached")


def key(*shape: int) -> object:
    return signature(MODULE, (torch.empty(shape, device="meta"),), {})


def learned(cost: Callable[[int], int], lengths: list[int]) -> Forms:
    forms = Forms()
    for length in lengths:
        forms.learn(key(4, length), demand(cost(length)))
    return forms


def test_a_quadratic_is_recovered_from_four() -> None:
    """Three calls give the polynomial and a fourth confirms it; a length in between follows to the last FLOP."""
    forms = learned(lambda n: 3 * n * n + 7 * n + 5, [2, 10, 30, 50])
    found = forms.predict(key(4, 17))
    assert found is not None
    assert found.model_flops == 3 * 17 * 17 + 7 * 17 + 5
    assert found.source == "predicted"
    assert found.by_dtype == {"float32": found.model_flops}


def test_nothing_from_three() -> None:
    """Any three points have a parabola: without a fourth that confirms it, nothing is predicted."""
    assert learned(lambda n: n * n, [2, 10, 30]).predict(key(4, 5)) is None


def test_nothing_beyond_the_counted_ends() -> None:
    """A form says nothing of lengths outside of what was counted."""
    forms = learned(lambda n: n * n, [2, 10, 30, 50])
    assert forms.predict(key(4, 1)) is None
    assert forms.predict(key(4, 51)) is None
    assert forms.predict(key(4, 50)) is not None


def test_a_window_is_not_a_parabola() -> None:
    """Quadratic up to a window of 16 and linear beyond: no polynomial agrees with all, so none is trusted."""
    forms = learned(lambda n: n * n if n <= 16 else 32 * n - 256, [2, 8, 16, 24, 40, 60])
    assert forms.predict(key(4, 12)) is None
    assert forms.predict(key(4, 50)) is None


def test_a_later_count_that_disagrees_ends_the_trust() -> None:
    """A counted call that the form had wrong takes it back."""
    forms = learned(lambda n: 5 * n, [2, 10, 30, 50])
    assert forms.predict(key(4, 20)) is not None
    assert forms.learn(key(4, 40), demand(999))
    assert forms.predict(key(4, 20)) is None
    assert not forms.learn(key(4, 44), demand(220))


class Windowed(nn.Module):
    """A layer that prices like attention with a window of 16: quadratic up to it, linear beyond."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = min(len(x), 16)
        return (x @ self.weight) @ torch.ones(1, seen)


def test_predictions_end_with_the_trust() -> None:
    """What was predicted for a length is forgotten as soon as a counted call shows that the form was wrong."""
    model = Windowed()

    @mfu.inference(model, peaks=PEAKS)
    def handle(length: int) -> None:
        with torch.no_grad():
            model(torch.ones(length, 1))

    for length in (2, 6, 10, 14, 16, 12):
        handle(length)
    sources = [each.source for each in kept(handle)]
    assert sources == ["cached"] * 4 + ["cached", "predicted"]
    handle(40)
    assert "predicted" not in [each.source for each in kept(handle)]
    handle(12)
    by_hand = mfu.count(model, torch.ones(12, 1)).model_flops
    assert [each.model_flops for each in kept(handle)][-1] == by_hand
    handle.run.close()


def kept(handle: Any) -> list[Demand]:
    return list(handle.run._demands.values())


def test_other_structures_are_other_families() -> None:
    """Another number of dimensions, dtype or keyword shares nothing with a known line."""
    forms = learned(lambda n: 5 * n, [2, 10, 30, 50])
    assert forms.predict(key(4, 20, 1)) is None
    double = signature(MODULE, (torch.empty(4, 20, device="meta", dtype=torch.float64),), {})
    assert forms.predict(double) is None
    assert forms.predict(key(5, 20)) is None


@given(
    st.tuples(*[st.integers(0, 1000)] * 3),
    st.sets(st.integers(1, 400), min_size=5, max_size=12),
    st.integers(1, 400),
)
def test_what_is_predicted_is_exact(coefficients: tuple[int, int, int], lengths: set[int], asked: int) -> None:
    """Whatever the polynomial, the lengths and their order: a prediction is the polynomial's own value."""
    a, b, c = coefficients

    def cost(n: int) -> int:
        return a * n * n + b * n + c

    found = learned(cost, list(lengths)).predict(key(4, asked))
    assert (found is not None) == (min(lengths) <= asked <= max(lengths))
    if found is not None:
        assert found.model_flops == cost(asked)


def test_training_on_lengths_never_counted(example: Any) -> None:
    """A GPT on random lengths: most steps are predicted, each exactly what counting it gives."""
    model = example.ByteGPT(example.Config(layers=1, heads=2, width=16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records: list[StepRecord] = []
    lengths = [1, 128, 64, 32, *range(2, 60, 3), 96, 17]

    def step(length: int) -> None:
        ids = torch.zeros(2, length, dtype=torch.long)
        F.cross_entropy(model(ids)[0].flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for length in lengths:
            with run.step():
                step(length)
    assert run.summary().unknown_steps == 0
    # Counted are the schedule's 0, 1, 2, 4, 8 and 16, and what was new before a form was there.
    assert sum(record.count_source == "predicted" for record in records) >= 15
    for length, record in zip(lengths, records, strict=True):
        assert record.model_flops == mfu.count(step, length).model_flops, length


def test_decoding_along_a_cache(example: Any) -> None:
    """A growing cache changes the sizes of all its tensors together: still one line, and exact."""
    model = example.ByteGPT(example.Config(layers=2, heads=2, width=16))

    @mfu.inference(model, peaks=PEAKS)
    def generate(prompt: int, new: int) -> torch.Tensor:
        return model.generate(torch.zeros(1, prompt, dtype=torch.long), new)

    for prompt in (4, 100, 40, 70):
        generate(prompt, 2)
    counted = generate.run._counts
    generate(20, 60)
    # Of the 60 calls the prompt is the first and its 59 steps have caches of 20 to 78: nothing had to be counted.
    assert generate.run._counts == counted
    by_hand = mfu.count(model.generate, torch.zeros(1, 20, dtype=torch.long), 60).model_flops
    latest = list(generate.run._demands.values())[-60:]
    assert sum(each.model_flops for each in latest) == by_hand
    # Those with a cache of 40 and of 70 had been counted.
    assert sum(each.source == "predicted" for each in latest) == 58
    generate.run.close()
