"""A calibration in words and as plain data."""

from dataclasses import replace

from mfu_sdk.peak.describe import as_json, describe
from mfu_sdk.records import CollectiveRate, CollectiveTime, Peaks, Rate

RATE = CollectiveRate(
    collective="all_reduce",
    over="host",
    link="nvlink",
    ranks=8,
    groups=4,
    backend="nccl",
    bus=Rate(4e11, 3.9e11, 4.1e11, "calibrated", 0.0),
    times=(CollectiveTime(1024, 2e-5, 1e-5, 3e-5, 7), CollectiveTime(8192, 5e-5, 4e-5, 6e-5, 25)),
)
PEAKS = Peaks("cuda:0", {}, {}, None, None, {}, collectives={"all_reduce/host": RATE})


def test_a_collective_in_words() -> None:
    """Rate and latency with their intervals and batches, at which size, between whom, over what."""
    [line] = [line for line in describe(PEAKS).splitlines() if "all_reduce" in line]
    for words in (
        "400.000 GB/s on the bus  [390.000 .. 410.000]  at 8 KiB, 25 batches",
        "latency 20 µs [10 .. 30], 7 batches",
        "4 × 8 ranks, host, link nvlink, nccl",
    ):
        assert words in line
    assert "bound by latency" not in line


def test_a_rate_that_is_latency() -> None:
    """A ladder that ended early says so, and what helps."""
    short = replace(RATE, times=RATE.times[:1])
    told = describe(replace(PEAKS, collectives={"all_reduce/host": short}))
    assert "at 1 KiB, 7 batches" in told
    assert "still bound by latency, give it a larger budget" in told


def test_why_collectives_are_missing() -> None:
    """The reason is shown."""
    told = describe(replace(PEAKS, state={"collectives_missing": "a group of one rank has no collectives"}))
    assert "collectives: a group of one rank has no collectives" in told


def test_a_collective_as_data() -> None:
    """The bus rate in bytes/s, every time with its size in bytes."""
    told = as_json(PEAKS)["collectives"]["all_reduce/host"]
    assert told["bus"] == {"bytes_per_s": 4e11, "low": 3.9e11, "high": 4.1e11, "source": "calibrated", "age_s": 0.0}
    assert told["times"][1] == {"size_bytes": 8192, "seconds": 5e-5, "low_s": 4e-5, "high_s": 6e-5, "batches": 25}
    assert (told["ranks"], told["groups"], told["link"], told["over"]) == (8, 4, "nvlink", "host")
