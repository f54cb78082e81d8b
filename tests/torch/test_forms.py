"""Closed forms of the FLOPs of lengths that were never counted."""

import gc
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mfu_sdk as mfu
from mfu_sdk.counting.plan import packed, signature
from mfu_sdk.records import Count, CountSource, Peaks, Rate, StepRecord
from mfu_sdk.run.costs import Costs, Shown
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.forms import Forms
from mfu_sdk.run.ledger import Ledger

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


def told(forms: Forms, *shape: int) -> int | None:
    found = forms.predict(key(*shape))
    return None if found is None else found.model_flops


def test_a_quadratic_is_recovered_from_five() -> None:
    """Three calls give the polynomial and two confirm it; a length in between follows to the last FLOP."""
    forms = learned(lambda n: 3 * n * n + 7 * n + 5, [2, 11, 23, 30, 50])
    found = forms.predict(key(4, 17))
    assert found is not None
    assert found.model_flops == 3 * 17 * 17 + 7 * 17 + 5
    assert found.source == "predicted"
    assert found.by_dtype == {"float32": found.model_flops}


def test_nothing_from_four() -> None:
    """Any three points have a parabola, and a fourth may lie on it by chance: nothing is predicted."""
    assert told(learned(lambda n: n * n, [2, 11, 30, 50]), 4, 5) is None


def test_nothing_beyond_the_counted_ends() -> None:
    """A form says nothing of lengths outside of what was counted."""
    forms = learned(lambda n: n * n, [2, 11, 23, 30, 50])
    assert [told(forms, 4, n) for n in (1, 51, 50, 49)] == [None, None, 2500, 2401]


def test_nothing_between_the_multiples() -> None:
    """Counts at multiples of 16 do not see what repeats every 16: chunks of attention cost alike there."""

    def chunked(n: int) -> int:
        return sum(min(i % 16, n) + 1 for i in range(n))

    forms = learned(chunked, [16, 32, 64, 128, 160])
    assert [told(forms, 4, n) for n in (48, 112)] == [chunked(48), chunked(112)]
    assert told(forms, 4, 40) is None
    # And a count off the multiples, once there is one, is no part of their form.
    forms.learn(key(4, 40), demand(chunked(40)))
    assert told(forms, 4, 42) is None


def windowed(n: int, window: int = 16) -> int:
    return sum(min(i + 1, window) for i in range(n))


def test_a_window_cuts_the_parabola() -> None:
    """Square up to a window of 16 and linear beyond: a form for each side, none across, and none of too few counts."""
    # At 16 both laws hold, so the linear one begins there; below it four counts are too few.
    forms = learned(windowed, [2, 5, 8, 16, 24, 41, 60, 70])
    assert [told(forms, 4, n) for n in (12, 20, 50)] == [None, windowed(20), windowed(50)]
    forms = learned(windowed, [2, 4, 7, 12, 14, 24, 41, 60, 66, 70])
    assert [told(forms, 4, n) for n in (9, 20, 50)] == [windowed(9), None, windowed(50)]


def test_two_windows_are_two_cuts_and_chance_is_more() -> None:
    """Three pieces are trusted where each is confirmed; what needs a fourth is no matter of the length."""

    def two(n: int) -> int:
        return windowed(n, 16) + windowed(n, 64)

    lengths = [1, 4, 9, 13, 14, 20, 33, 47, 55, 60, 70, 83, 90, 94, 100]
    assert [told(learned(two, lengths), 4, n) for n in (10, 30, 80)] == [two(10), two(30), two(80)]

    def coin(n: int) -> int:
        return n * (1 + (n // 32) % 2)

    runs = [base + n for base in (0, 32, 64, 96) for n in (1, 4, 9, 15, 20)]
    assert {told(learned(coin, runs), 4, n) for n in range(1, 110)} == {None}


def test_a_count_that_disagrees_ends_the_trust_and_the_third_for_good() -> None:
    """A counted call that a form had wrong takes all it said back; trust is earned anew, twice at the most."""
    forms = Forms()
    for rate in (5, 6, 7, 8):
        wrong = [forms.learn(key(4, length), demand(rate * length)) for length in (2, 11, 23, 30, 50)]
        assert wrong == [rate > 5, False, False, False, False]
        assert told(forms, 4, 20) == (20 * rate if rate < 8 else None)


def test_one_size_with_two_counts_is_no_form() -> None:
    """Where equal sizes have cost differently, none of the earlier counts is built upon."""
    forms = learned(lambda n: 5 * n, [2, 11, 23, 30])
    assert forms.learn(key(4, 11), demand(56))
    forms.learn(key(4, 50), demand(250))
    assert told(forms, 4, 20) is None


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

    for length in (2, 6, 10, 11, 14, 16, 12):
        handle(length)
    sources = [each.source for each in kept(handle)]
    assert sources == ["cached"] * 6 + ["predicted"]
    handle(40)
    assert "predicted" not in [each.source for each in kept(handle)]
    handle(12)
    by_hand = mfu.count(model, torch.ones(12, 1)).model_flops
    assert [each.model_flops for each in kept(handle)][-1] == by_hand
    handle.run.close()


def kept(handle: Any) -> list[Demand]:
    return list(handle.run._calls._costs._demands.values())


def test_other_structures_are_other_families() -> None:
    """Another number of dimensions, dtype or keyword shares nothing with a known line."""
    forms = learned(lambda n: 5 * n, [2, 11, 23, 30, 50])
    assert told(forms, 4, 20) == 100
    assert told(forms, 4, 20, 1) is None
    double = signature(MODULE, (torch.empty(4, 20, device="meta", dtype=torch.float64),), {})
    assert forms.predict(double) is None
    assert told(forms, 5, 20) is None


@given(
    st.tuples(*[st.integers(0, 1000)] * 3),
    st.sets(st.integers(1, 400), min_size=5, max_size=12),
    st.integers(1, 400),
)
def test_what_is_predicted_is_exact(coefficients: tuple[int, int, int], lengths: set[int], asked: int) -> None:
    """Whatever the polynomial, the lengths and their order: inside and on their grid, it is the polynomial's value."""
    a, b, c = coefficients

    def cost(n: int) -> int:
        return a * n * n + b * n + c

    found = told(learned(cost, list(lengths)), 4, asked)
    grid = gcd(*(length - min(lengths) for length in lengths))
    inside = min(lengths) <= asked <= max(lengths) and (asked - min(lengths)) % grid == 0
    assert found == (cost(asked) if inside else None)


def test_batch_and_length_vary_together() -> None:
    """Batches padded to their longest: from ten of a transformer's steps, all sizes between follow exactly."""

    def cost(batch: int, length: int) -> int:
        return 6144 * batch * length**2 + 9_842_688 * batch * length + 77

    counted = [(8, 100), (3, 257), (16, 64), (1, 512), (5, 33), (12, 300), (7, 190), (2, 77), (10, 451), (4, 350)]
    forms = Forms()
    for sizes in counted:
        assert told(forms, 6, 200) is None
        forms.learn(key(*sizes), demand(cost(*sizes)))
    asked = [(batch, length) for batch in range(1, 17) for length in range(33, 513, 7)]
    assert {told(forms, *sizes) == cost(*sizes) for sizes in asked} == {True}
    assert [told(forms, *sizes) for sizes in ((17, 100), (8, 32), (8, 513))] == [None] * 3


def test_lines_apart_confirm_nothing_between_them() -> None:
    """Five lengths at batch 4 and five longer ones at batch 2: each line is known as far as it goes, and no more."""
    forms = Forms()
    for batch, lengths in ((4, (1, 2, 5, 8, 10)), (2, (100, 111, 150, 160, 200))):
        for length in lengths:
            forms.learn(key(batch, length), demand(batch * windowed(length)))
    assert told(forms, 4, 7) == 4 * windowed(7)
    assert told(forms, 2, 180) == 2 * windowed(180)
    assert [told(forms, *sizes) for sizes in ((4, 150), (2, 7), (3, 50), (3, 7))] == [None] * 4


def test_a_cross_of_sizes_says_nothing_of_its_corners() -> None:
    """Along one batch and along one length a sum fits as well as a product: neither is believed elsewhere."""
    forms = Forms()
    for batch, length in [(b, 16) for b in range(1, 9)] + [(3, n) for n in (17, 20, 33, 41, 48)]:
        forms.learn(key(batch, length), demand(batch * length))
    assert told(forms, 3, 40) == 120
    assert told(forms, 5, 16) == 80
    assert told(forms, 5, 40) is None


SIZES = st.tuples(st.integers(1, 24), st.integers(1, 300))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_two_sizes_exact_or_refused(data: st.DataObject) -> None:
    """Transformers with windows, chunks and terms of batch² on any counted sizes: a prediction is exact or is none."""
    a, b, c, d, e = data.draw(st.tuples(*[st.integers(0, 50)] * 5))
    windows = data.draw(st.lists(st.integers(2, 299), max_size=2))
    chunk = data.draw(st.sampled_from([0, 0, 8, 64]))

    def cost(batch: int, length: int) -> int:
        pairs = sum(min(length, w) * (min(length, w) + 1) // 2 + max(0, length - w) * w for w in windows)
        if chunk:
            pairs += length // chunk * (chunk * (chunk + 1) // 2) + (length % chunk) * (length % chunk + 1) // 2
        return a * batch * length + b * batch * length**2 + c * batch**2 + d + (e + 1) * batch * pairs

    # Whole multiples as well, which are blind to chunks.
    unit = data.draw(st.sampled_from([1, 1, 8]))
    counted = data.draw(st.lists(SIZES, min_size=4, max_size=28, unique=True))
    forms = Forms()
    for batch, length in counted:
        forms.learn(key(batch, unit * length), demand(cost(batch, unit * length)))
    for batch, length in data.draw(st.lists(SIZES, min_size=20, max_size=20)):
        found = told(forms, batch, unit * length)
        assert found in (None, cost(batch, unit * length))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 99), st.integers(0, 99)), min_size=24, max_size=36),
    st.tuples(st.integers(1, 8), st.integers(1, 99), st.integers(0, 99)),
    st.integers(1, 120),
)
def test_a_cache_beside_batch_and_length(
    counted: list[tuple[int, int, int]], asked: tuple[int, int, int], window: int
) -> None:
    """With a cache, and the mask's length which follows from it, three sizes vary; a window over them is noticed."""

    def signed(batch: int, new: int, cache: int) -> object:
        shapes = (batch, new), *[(batch, 4, cache, 16)] * 6, (batch, new + cache)
        return signature(MODULE, [torch.empty(shape, device="meta") for shape in shapes], {})

    def cost(batch: int, new: int, cache: int) -> int:
        seen = sum(min(cache + i + 1, window) for i in range(new))
        return 12 * batch * new + 4 * batch * seen + 2 * batch * new * (new + cache) + 5

    forms = Forms()
    for sizes in counted:
        forms.learn(signed(*sizes), demand(cost(*sizes)))
    found = forms.predict(signed(*asked))
    assert found is None or found.model_flops == cost(*asked)


def test_three_sizes_are_recovered() -> None:
    """Of batch, new tokens and cache, 30 counted calls give a form for all between."""
    draw = random.Random(0)
    forms = Forms()

    def signed(batch: int, new: int, cache: int) -> object:
        shapes = (batch, new), *[(batch, 4, cache, 16)] * 6, (batch, new + cache)
        return signature(MODULE, [torch.empty(shape, device="meta") for shape in shapes], {})

    def cost(batch: int, new: int, cache: int) -> int:
        return 12 * batch * new + 8 * batch * new * (new + cache) + 5

    for _ in range(30):
        sizes = draw.randint(1, 32), draw.randint(1, 200), draw.randint(0, 900)
        forms.learn(signed(*sizes), demand(cost(*sizes)))
    found = [forms.predict(signed(b, n, c)) for b, n, c in ((8, 50, 100), (20, 150, 600), (16, 100, 450))]
    assert [each and each.model_flops for each in found] == [cost(8, 50, 100), cost(20, 150, 600), cost(16, 100, 450)]
    # A mask that does not follow from the rest is another kind of call.
    assert forms.predict(signature(MODULE, [torch.empty(s, device="meta") for s in MASKED], {})) is None


MASKED = (8, 50), *[(8, 4, 100, 16)] * 6, (8, 151)


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


def test_training_on_batches_padded_to_their_longest(example: Any) -> None:
    """Batch and length both random: from a dozen counted steps on most others are predicted, each exactly."""
    model = example.ByteGPT(example.Config(layers=1, heads=2, width=16))
    draw = random.Random(3)
    records: list[StepRecord] = []
    sizes = [(1, 3), (8, 61), (1, 64), (8, 2), *((draw.randint(1, 8), draw.randint(2, 64)) for _ in range(36))]

    def step(batch: int, length: int) -> None:
        ids = torch.zeros(batch, length, dtype=torch.long)
        F.cross_entropy(model(ids)[0].flatten(0, 1), ids.flatten()).backward()

    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for each in sizes:
            with run.step():
                step(*each)
    assert sum(record.count_source == "predicted" for record in records) >= 18
    for each, record in zip(sizes, records, strict=True):
        assert record.model_flops in (None, mfu.count(step, *each).model_flops), each


def test_decoding_along_a_cache(example: Any) -> None:
    """A growing cache changes the sizes of all its tensors together: still one line, and exact."""
    model = example.ByteGPT(example.Config(layers=2, heads=2, width=16))

    @mfu.inference(model, peaks=PEAKS)
    def generate(prompt: int, new: int) -> torch.Tensor:
        return model.generate(torch.zeros(1, prompt, dtype=torch.long), new)

    for prompt in (4, 100, 41, 55, 70):
        generate(prompt, 2)
    counted = generate.run._calls._costs._counts
    generate(20, 60)
    # Of the 60 calls the prompt is the first and its 59 steps have caches of 20 to 78: nothing had to be counted.
    assert generate.run._calls._costs._counts == counted
    by_hand = mfu.count(model.generate, torch.zeros(1, 20, dtype=torch.long), 60).model_flops
    latest = list(generate.run._calls._costs._demands.values())[-60:]
    assert sum(each.model_flops for each in latest) == by_hand
    # Those with a cache of 41, 55 and 70 had been counted.
    assert sum(each.source == "predicted" for each in latest) == 57
    generate.run.close()


class Notes:
    """Stands where a run's books stand: prices a count, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.note = self.told.append

    def price(self, count: Count, source: CountSource) -> Demand:
        return replace(demand(count.model_flops), source=source)


def test_memory_is_bounded_whatever_the_shapes() -> None:
    """Of 100,000 shapes, packs and structures that never return, every tenth counted, the costs of some are kept."""
    costs = Costs(cast(Ledger, Notes()), "exact", has_model=True)
    count = mfu.count(MODULE, torch.ones(1, 1))
    draw = random.Random(0)
    gc.collect()
    before = len(gc.get_objects())
    for index in range(100_000):
        rows, columns = draw.randint(1, 10**6), draw.randint(1, 10**6)
        call = torch.Size((rows, columns)), torch.Size([1] * (index % 700))
        lengths = packed([rows, columns]) if index % 3 == 0 else None
        shown = Shown("train", 0, frozenset(((call, 1 + index % 5),)), lengths)
        if index % 10 == 0:
            costs.learn(shown, replace(count, model_flops=rows, hardware_flops=rows))
        costs.of(shown)
        costs.is_known("train", 0, call, lengths)
    gc.collect()
    kept = [kind for kind in gc.get_objects() if type(kind) in {Demand, Count, Shown}]
    assert len(kept) < 3 * 4096 + 256 * 40
    assert len(gc.get_objects()) - before < 150_000


def test_other_packs_of_known_shapes_are_a_sample() -> None:
    """A pack of lengths that no form reaches has the mean of the packs counted, which is a sample though all agree."""
    costs = Costs(cast(Ledger, Notes()), "exact", has_model=True)
    count = mfu.count(MODULE, torch.ones(1, 1))
    calls = frozenset((((torch.Size((12, 8)),), 1),))
    for lengths in ([4, 8], [5, 7]):
        costs.learn(Shown("train", 0, calls, packed(lengths)), count)
    told = [costs.of(Shown("train", 0, calls, packed(lengths))) for lengths in ([8, 4], [6, 6])]
    assert [each and (each.model_flops, each.source) for each in told] == [(2, "cached"), (2, "sampled")]


def numbered(number: int, *shape: int) -> object:
    return signature(MODULE, (torch.empty(shape, device="meta"), number), {})


def counting(costs: dict[int, int], *, counters: bool = True) -> Callable[[int], int | None]:
    """What is told of calls of one shape with other numbers, after these were counted."""
    forms = Forms(counters=counters)
    for number, flops in costs.items():
        forms.learn(numbered(number, 4, 8), demand(flops))

    def ask(number: int) -> int | None:
        found = forms.predict(numbered(number, 4, 8))
        return None if found is None else found.model_flops

    return ask


def test_a_number_that_counts_is_no_size() -> None:
    """Three counts of the same cost with another number each: from the least of them on it does not matter."""
    ask = counting({2: 10, 3: 10, 4: 10})
    assert [ask(number) for number in (1, 2, 5, 10**6)] == [None, 10, 10, 10]
    assert counting({2: 10, 3: 10})(5) is None
    # Where it does matter it is a size like any other, and nothing lies beyond what was counted.
    assert [counting({n: 3 * n for n in range(2, 8)})(number) for number in (5, 8)] == [15, None]
    # A handler's number is a length.
    assert counting({2: 10, 3: 10, 4: 10}, counters=False)(5) is None


def test_a_number_that_begins_to_matter_is_a_size_again() -> None:
    """A count that contradicts ends it for good."""
    forms = Forms(counters=True)
    for number in range(3):
        assert not forms.learn(numbered(number, 4, 8), demand(10))
    assert forms.learn(numbered(8, 4, 8), demand(20))
    for number in range(9, 12):
        forms.learn(numbered(number, 4, 8), demand(20))
    assert forms.predict(numbered(100, 4, 8)) is None


def test_a_number_beside_lengths() -> None:
    """Batches of some lengths, each with its index: once one length was counted three times the index is left out."""
    forms = Forms(counters=True)
    for number, length in enumerate((2, 11, 11, 11, 23, 30, 50)):
        forms.learn(numbered(number, 4, length), demand(length * length))
    found = forms.predict(numbered(99, 4, 17))
    assert found is not None
    assert found.model_flops == 17 * 17
