"""Which steps to count, and what a step of a known signature costs without counting it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, is_grad_enabled, is_inference_mode_enabled

from mfu_sdk.records import Convention, Count, CountSource

MOST_SIGNATURES: Final = 4096
"""Signatures that a plan remembers; beyond them the one unused for longest is forgotten."""

_SCALARS: Final = (bool, int, str, bytes, type(None), torch.dtype, torch.device)
_DEEPEST: Final = 6
_LONGEST: Final = 32
_SUMS: Final = (
    "hardware_flops",
    "forward_flops",
    "backward_flops",
    "recompute_flops",
    "optimizer_flops",
    "attention_flops_exact",
    "attention_flops_full",
    "bytes_moved",
)
_SPLITS: Final = ("by_dtype", "by_module", "by_op")


def signature(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """What decides how many FLOPs a forward of `module` takes, as far as its call shows it.

    Tensors give shape, dtype and whether they want a gradient; lists, tuples and mappings are gone through, six deep;
    whole numbers, flags and short texts give their value, a key-value cache (`get_seq_length`) its length, other
    objects their class. To these come the grad and inference modes, autocast and its dtype, and the training flag.
    What the call does not show (packed lengths, routing) makes counts of one signature differ, which `Plan.store`
    notices.
    """
    if len(args) == 1 and type(args[0]) is Tensor:
        # What most calls have, written out: this is on the path of every step.
        [value] = args
        shown: tuple[Hashable, ...] = ((value.shape, value.dtype, value.requires_grad),)
    else:
        shown = tuple([_key(value, 0) for value in args])
    return (
        id(module),
        module.training,
        is_grad_enabled(),
        is_inference_mode_enabled(),
        _autocast() if _any_autocast() else None,
        shown,
        tuple([(name, _key(value, 0)) for name, value in kwargs.items()]) if kwargs else (),
    )


def _autocast() -> tuple[torch.dtype | None, torch.dtype | None]:
    return (
        torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
        torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None,
    )


# One question for all devices, which torch asks itself; where it is gone, each is asked.
_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def _key(value: Any, depth: int) -> Hashable:
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.requires_grad
    if isinstance(value, float) or (isinstance(value, str) and len(value) > _LONGEST):
        # A time, a rate, a text: of what decides a cost it tells nothing, and it is another one in each step.
        kind: type = type(value)
        return kind
    if isinstance(value, _SCALARS):
        # True == 1 == 1.0 as keys of a dict; as arguments they may differ.
        return type(value), value
    if depth < _DEEPEST:
        if isinstance(value, (list, tuple)):
            return type(value), tuple([_key(item, depth + 1) for item in value])
        if isinstance(value, Mapping):
            return type(value), tuple([(str(name), _key(item, depth + 1)) for name, item in value.items()])
    length = getattr(value, "get_seq_length", None)
    if callable(length):
        return type(value), _key(length(), _DEEPEST)
    other: type = type(value)
    return other


class Packed(NamedTuple):
    """The lengths of sequences that are packed into one: their sum, their sum of squares, their number.

    Attention within the sequences costs a multiple of Σs and one of Σs². `lengths` is a hash of the lengths in rising
    order, so that packs whose sums are alike are told apart: a sliding window tells them apart too.
    """

    total: int
    squares: int
    number: int
    lengths: int


def packed(seq_lens: object) -> Packed:
    """The lengths in `seq_lens`: whole numbers of at least 0, in a sequence or in a tensor on the CPU.

    Raises `ValueError` for anything else, a tensor on another device included: to read it would wait for the device.
    """
    if isinstance(seq_lens, torch.Tensor):
        if seq_lens.device.type != "cpu":
            raise ValueError(
                f"a tensor on {seq_lens.device}: reading it would wait for the device; give the lengths as a list, or "
                "as the CPU tensor that they were packed from"
            )
        if seq_lens.is_floating_point() or seq_lens.is_complex() or seq_lens.dtype is torch.bool or seq_lens.dim() != 1:
            raise ValueError(
                f"a tensor of {seq_lens.dtype} with {seq_lens.dim()} dimensions: must be whole numbers in one; give "
                "the length of each sequence"
            )
        seq_lens = seq_lens.tolist()
    if not isinstance(seq_lens, Sequence) or not all(type(each) is int and each >= 0 for each in seq_lens):
        raise ValueError(
            f"a {type(seq_lens).__name__}: must be whole numbers of at least 0 in a list, a tuple or a CPU tensor; "
            "give the length of each sequence"
        )
    lengths = sorted(seq_lens)
    return Packed(sum(lengths), sum(each * each for each in lengths), len(lengths), hash(tuple(lengths)))


def leading_dimension(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The batch of a call: the first dimension of its first tensor; 0 where there is none."""
    for values in (args, kwargs.values()):
        for value in values:
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                return int(value.shape[0])
    return 0


@dataclass(slots=True)
class _Entry:
    """The counts stored under one signature: the latest, how many, their spread, and sums once two have differed."""

    latest: Count
    stored: int = 1
    # Σ and Σ² of model FLOPs, of all that were stored.
    model: int = 0
    model_squares: int = 0
    least: int = 0
    most: int = 0
    sums: dict[str, int] | None = None
    splits: dict[str, dict[str, int]] | None = None


class Spread(NamedTuple):
    """How far counts of one signature lie apart: their number, and of their model FLOPs mean, deviation, ends.

    `deviation` is that of a sample: over `counts` - 1.
    """

    counts: int
    mean: int
    deviation: int
    least: int
    most: int


class Plan:
    """Which steps to count, and the counts so far by signature.

    Step indices to count are the same on all ranks, so that no rank waits for another's slow step.
    """

    def __init__(self, *, convention: Convention = "exact") -> None:
        self.convention: Convention = convention
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    @staticmethod
    def should_count(index: int) -> bool:
        """Whether step `index` is counted while it runs: 0, 1, 2, 4, 8, … up to 512, then every 1,000th."""
        return index % 1000 == 0 if index >= 1000 else index & (index - 1) == 0

    @staticmethod
    def counted_after(index: int) -> int:
        """The first index after `index` that `should_count`."""
        return (index // 1000 + 1) * 1000 if index >= 512 else 1 << index.bit_length()

    def lookup(self, key: Hashable) -> tuple[Count, CountSource] | None:
        """The count of a step with this signature, or None if none was stored.

        "cached": every count of this signature was the same. "sampled": they differed, and this is their mean, rounded
        down, with the operators (`Count.ops`) and what was uncounted of the latest.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return (entry.latest, "cached") if entry.sums is None else (_mean(entry), "sampled")

    def store(self, key: Hashable, count: Count) -> None:
        """Remember what a counted step of this signature cost."""
        entry = self._entries.get(key)
        if entry is None:
            flops = count.model_flops
            self._entries[key] = _Entry(count, 1, flops, flops * flops, flops, flops)
            if len(self._entries) > MOST_SIGNATURES:
                self._entries.popitem(last=False)
            return
        self._entries.move_to_end(key)
        if entry.sums is None and _flops(count) != _flops(entry.latest):
            entry.sums = {name: entry.stored * getattr(entry.latest, name) for name in _SUMS}
            entry.splits = {name: _scaled(getattr(entry.latest, name), entry.stored) for name in _SPLITS}
        if entry.sums is not None and entry.splits is not None:
            for name in _SUMS:
                entry.sums[name] += getattr(count, name)
            for name in _SPLITS:
                split = entry.splits[name]
                for part, flops in getattr(count, name).items():
                    split[part] = split.get(part, 0) + flops
        entry.latest = count
        entry.stored += 1
        entry.model += count.model_flops
        entry.model_squares += count.model_flops**2
        entry.least, entry.most = min(entry.least, count.model_flops), max(entry.most, count.model_flops)

    def spreads(self) -> list[Spread]:
        """Of each signature whose counts differed in model FLOPs, how far; the widest first, by deviation over mean."""
        found = [_spread(entry) for entry in self._entries.values() if entry.least < entry.most]
        return sorted(found, key=lambda spread: spread.deviation / (spread.mean or 1), reverse=True)


def _flops(count: Count) -> tuple[int, int, int]:
    return count.forward_flops, count.backward_flops, count.hardware_flops


def _spread(entry: _Entry) -> Spread:
    n = entry.stored
    variance = (n * entry.model_squares - entry.model**2) // (n * (n - 1))
    return Spread(n, entry.model // n, isqrt(variance), entry.least, entry.most)


def _scaled(split: Mapping[str, int], times: int) -> dict[str, int]:
    return {part: times * flops for part, flops in split.items()}


def _mean(entry: _Entry) -> Count:
    assert entry.sums is not None
    assert entry.splits is not None
    means = {name: total // entry.stored for name, total in entry.sums.items()}
    model_flops = means["forward_flops"] + means["backward_flops"]
    splits = {name: _shared(split, entry.stored, model_flops) for name, split in entry.splits.items()}
    return replace(entry.latest, model_flops=model_flops, **means, **splits)  # type: ignore[arg-type]  # names of fields


def _shared(split: Mapping[str, int], stored: int, model_flops: int) -> dict[str, int]:
    """The mean of a split; what rounding leaves over goes to the largest part, so that the parts add up."""
    means = {part: flops // stored for part, flops in split.items()}
    if means:
        largest = max(means, key=means.__getitem__)
        means[largest] += model_flops - sum(means.values())
    return means
