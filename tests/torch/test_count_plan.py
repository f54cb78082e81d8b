"""Which steps are counted, and what a signature tells apart."""

from collections.abc import Hashable
from dataclasses import replace

import pytest
import torch
from torch import nn

import mfu_sdk as mfu
from mfu_sdk.counting import plan
from mfu_sdk.counting.plan import Plan, packed, signature

MODEL = nn.Linear(4, 4)
X = torch.randn(2, 4)


def key(*args: object, **kwargs: object) -> Hashable:
    return signature(MODEL, args, kwargs)


def test_counted_indices() -> None:
    """0, 1, 2, 4, 8, … below a thousand, then every thousandth."""
    counted = [index for index in range(3500) if Plan.should_count(index)]
    assert counted == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000]


def test_the_same_call_has_the_same_signature() -> None:
    """Values of tensors do not matter; their containers' identity neither."""
    assert key({"ids": [X]}, mask=None) == key({"ids": [torch.randn(2, 4)]}, mask=None)
    hash(key({"ids": [X]}, mask=None))


@pytest.mark.parametrize(
    "other",
    [
        key(torch.randn(3, 4)),
        key(X.double()),
        key(X.clone().requires_grad_()),
        key([X]),
        key(X, causal=True),
        key({"x": X}),
        signature(nn.Linear(4, 4), (X,), {}),
    ],
    ids=["shape", "dtype", "gradient", "container", "keyword", "mapping", "module"],
)
def test_what_tells_calls_apart(other: Hashable) -> None:
    """Each of these may change the FLOPs."""
    assert other != key(X)


def test_scalars_are_told_apart_by_class_and_value() -> None:
    """True, 1 and 1.0 are equal as keys and differ as arguments."""
    assert len({key(True), key(1), key(1.0), key(2), key("1"), key(None)}) == 6  # noqa: FBT003 - a value


def test_modes_tell_calls_apart() -> None:
    """Gradients off, inference, autocast and evaluation each change what runs."""
    found = {key(X)}
    with torch.no_grad():
        found.add(key(X))
    with torch.inference_mode():
        found.add(key(X))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found.add(key(X))
    MODEL.eval()
    found.add(key(X))
    MODEL.train()
    assert len(found) == 6


def test_a_caches_length_tells_calls_apart() -> None:
    """A key-value cache is an object; how much it holds decides the attention's cost."""

    class Cache:
        def __init__(self, length: int) -> None:
            self.length = length

        def get_seq_length(self) -> int:
            return self.length

    assert key(past=Cache(3)) == key(past=Cache(3)) != key(past=Cache(4))


def test_a_list_in_itself_ends() -> None:
    """Containers are gone through six deep."""
    loop: list[object] = [X]
    loop.append(loop)
    hash(key(loop))


def test_equal_counts_are_cached() -> None:
    """A signature whose counts agree gives the count itself; one never stored gives nothing."""
    steps = Plan()
    count = mfu.count(MODEL, X)
    assert steps.lookup("a") is None
    steps.store("a", count)
    steps.store("a", mfu.count(MODEL, X))
    assert steps.lookup("a") == (count, "cached")


def test_differing_counts_are_sampled() -> None:
    """Of 64, 64 and 129 FLOPs the mean is 85, its parts add up, and the source says so."""
    steps = Plan()
    count = mfu.count(MODEL, X)
    odd = replace(count, forward_flops=129, model_flops=129, by_dtype={"float32": 100, "bfloat16": 29})
    for each in (count, count, odd):
        steps.store("a", each)
    found = steps.lookup("a")
    assert found is not None
    mean, source = found
    assert (source, mean.model_flops, mean.forward_flops, mean.hardware_flops) == ("sampled", 85, 85, 64)
    assert mean.by_dtype == {"float32": 76, "bfloat16": 9}
    assert sum(mean.by_module.values()) == 85


def test_the_plan_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature unused for longest makes room."""
    monkeypatch.setattr(plan, "MOST_SIGNATURES", 2)
    steps = Plan()
    count = mfu.count(MODEL, X)
    for name in ("a", "b"):
        steps.store(name, count)
    steps.lookup("a")
    steps.store("c", count)
    assert [steps.lookup(name) is None for name in ("a", "b", "c")] == [False, True, False]


def test_the_spread_of_what_differed() -> None:
    """64, 64 and 129 model FLOPs: mean 85, deviation sqrt(4225 / 3) = 37, ends 64 and 129; the widest comes first."""
    steps = Plan()
    count = mfu.count(MODEL, X)
    for name, flops in (("a", 64), ("a", 64), ("same", 64), ("same", 64), ("b", 64), ("b", 65), ("a", 129)):
        steps.store(name, replace(count, forward_flops=flops, model_flops=flops))
    assert steps.spreads() == [(3, 85, 37, 64, 129), (2, 64, 0, 64, 65)]


@pytest.mark.parametrize("lengths", [[3, 5, 8], (8, 3, 5), torch.tensor([5, 8, 3], dtype=torch.int32)])
def test_packed_lengths(lengths: object) -> None:
    """3, 5 and 8 in any order and container: sum 16, sum of squares 98, three of them."""
    found = packed(lengths)
    assert found == packed([3, 5, 8])
    assert found[:3] == (16, 98, 3)


def test_packs_of_equal_sums_are_told_apart() -> None:
    """1 + 5 + 6 and 2 + 3 + 7 agree in number, sum and squares; a sliding window costs them differently."""
    one, other = packed([1, 5, 6]), packed([2, 3, 7])
    assert one[:3] == other[:3] == (12, 62, 3)
    assert one != other


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (torch.empty(3, dtype=torch.int64, device="meta"), "on meta: reading it would wait for the device; give.*list"),
        (torch.tensor([1.0]), "torch.float32 with 1 dimensions: must be whole numbers"),
        (torch.tensor([[1]]), "torch.int64 with 2 dimensions"),
        (torch.tensor([True]), "torch.bool"),
        ([1, -1], "list: must be whole numbers of at least 0"),
        ([1, 2.0], "list: must be whole numbers"),
        ([True], "list: must be whole numbers"),
        ([torch.tensor(1)], "list: must be whole numbers"),
        (7, "int: must be whole numbers"),
        ("12", "str: must be whole numbers"),
    ],
)
def test_lengths_that_cannot_be_read(lengths: object, words: str) -> None:
    """What would have to wait for a device, or is no whole number, is refused with the remedy."""
    with pytest.raises(ValueError, match=words):
        packed(lengths)


def test_the_next_step_that_is_counted() -> None:
    """From each index the schedule's next: 0, 1, 2, 4, … 512, 1,000, 2,000."""
    counted = [index for index in range(5001) if Plan.should_count(index)]
    for index in range(4999):
        assert Plan.counted_after(index) == next(each for each in counted if each > index)
