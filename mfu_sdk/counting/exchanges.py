"""What the collectives of a piece of work take, and beside what they can run: from counted bytes and measured rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from mfu_sdk.counting.collective_time import bus_factor, seconds
from mfu_sdk.records import CollectiveRate, Count, Expectation, Peaks

Beside = Literal["backward", "all", "none"]
"""Which of the operators a collective runs beside: the backward's, all of them, or none, which then wait for it."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """A time and its interval, in seconds."""

    value: float
    low: float
    high: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, times: float) -> Seconds:
        return Seconds(self.value * times, self.low * times, self.high * times)


NO_TIME: Final = Seconds(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Exchange:
    """All calls of one collective: their time together, beside what it runs, and why that is taken to be so."""

    name: str
    calls: int
    time: Seconds
    beside: Beside
    why: str


@dataclass(frozen=True, slots=True)
class Sent:
    """What a step hands to other ranks: None for what is not known.

    `bus_bytes` by the bus convention of nccl-tests, all collectives together; `peak_bytes_per_s` the measured bus rate
    of its messages, each collective's taken for one; `ideal_ratio` what all exchanges take at measured rates over what
    the operators do, hidden or not.
    """

    bus_bytes: float | None
    peak_bytes_per_s: float | None
    ideal_ratio: float | None


# How torch names them, without underscores; a prefix is enough. Longest first where one begins another.
_NAMES: Final = (
    ("allreduce", "all_reduce"),
    ("allgather", "all_gather"),
    ("reducescatter", "reduce_scatter"),
    ("alltoall", "all_to_all"),
)
_BESIDE: Final[Mapping[str, tuple[Beside, str]]] = {
    # Buckets are reduced while the gradients of earlier layers are computed: Li et al., "PyTorch Distributed", VLDB 13
    # (12), 2020, section 3.2.3.
    "all_reduce": ("backward", "all-reduces run beside the backward, as DDP's do"),
    # Parameters are gathered ahead, gradients scattered behind: Zhao et al., "PyTorch FSDP", VLDB 16 (12), 2023,
    # section 3.3.
    "all_gather": ("all", "all-gathers run beside forward and backward, as FSDP's do"),
    "reduce_scatter": ("all", "reduce-scatters run beside the backward's products, as FSDP's do"),
    # Nothing of the layer can be computed before it. Our own model: libraries differ.
    "all_to_all": ("none", "all-to-alls are waited for"),
}


# Of one rank to one or all others, and of all to one: what is handed over passes the bus once (nccl-tests as above).
_ONCE: Final = ("broadcast", "reduce", "send")


def sent(count: Count, peaks: Peaks, ranks: int, expectation: Expectation | None) -> Sent:
    """What `count` hands to others, taken to go between all `ranks`: a count does not know between which."""
    bus_bytes, taken_s = 0.0, 0.0
    known = measured = True
    for name, handed in count.comm_bytes.items():
        plain = name.replace("_", "")
        kind = next((kind for prefix, kind in _NAMES if plain.startswith(prefix)), None)
        if kind is None:
            known &= plain.startswith(_ONCE)
            measured = False
            bus_bytes += handed
            continue
        size = handed * ranks if kind == "all_gather" else handed
        bus_bytes += size * bus_factor(kind, ranks)
        among = [rate for rate in _rates(peaks, kind) if rate.ranks == ranks]
        measured &= bool(among)
        taken_s += seconds(among[0], size) if among else 0.0
    computing_s = 0.0 if expectation is None else expectation.compute_s + expectation.memory_s
    ideal = None
    if expectation is not None and computing_s and not expectation.missing:
        ideal = (expectation.communication_s + expectation.hidden_s) / computing_s
    return Sent(bus_bytes if known else None, bus_bytes / taken_s if known and measured and taken_s else None, ideal)


def counted_exchanges(count: Count, peaks: Peaks) -> tuple[tuple[Exchange, ...], tuple[str, ...]]:
    """The collectives of `count` at the measured bus rates of `peaks`, and those that have none, in words.

    time = S × `bus_factor` / bus rate, with S from the bytes that this rank handed over: all of S, but to an all-gather
    its own nth part. A count knows neither how many messages they were, so that latency is left out, nor between which
    ranks: the rate between all ranks is taken where there is one, and the interval spans all that were measured.
    """
    sums: dict[str, int] = {}
    missing = []
    for name, handed in count.comm_bytes.items():
        plain = name.replace("_", "")
        kind = next((known for prefix, known in _NAMES if plain.startswith(prefix)), None)
        if kind is None or not _rates(peaks, kind):
            missing.append(f"{name} of {handed:,} bytes")
        else:
            sums[kind] = sums.get(kind, 0) + handed
    found = []
    for kind, handed in sums.items():
        beside, why = _BESIDE[kind]
        found.append(Exchange(kind, 1, _time(kind, handed, _rates(peaks, kind)), beside, why))
    return tuple(found), tuple(missing)


def _rates(peaks: Peaks, kind: str) -> list[CollectiveRate]:
    """What was measured of a collective, that between all ranks first: one host's ranks are all where it is alone."""
    return [
        peaks.collectives[key] for over in ("all", "host", "network") if (key := f"{kind}/{over}") in peaks.collectives
    ]


def _time(kind: str, handed: int, rates: list[CollectiveRate]) -> Seconds:
    def through(rate: CollectiveRate) -> float:
        size = handed * rate.ranks if kind == "all_gather" else handed
        return size * bus_factor(kind, rate.ranks)

    return Seconds(
        through(rates[0]) / rates[0].bus.bytes_per_s,
        min(through(rate) / rate.bus.high for rate in rates),
        max(through(rate) / rate.bus.low for rate in rates),
    )
