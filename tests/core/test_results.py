"""The calibrations on disk."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mfu_sdk import guard
from mfu_sdk.peak.results import Results
from mfu_sdk.records import CollectiveRate, CollectiveTime, Peaks, Rate

KEY = {"kind": "cpu", "name": "Example 9000", "threads": 2}
PEAKS = Peaks(
    "cpu",
    {},
    {"float32": Rate(1e11, 7e10, 1.3e11, "calibrated", 0.0)},
    Rate(2e10, 1e10, 3e10, "calibrated", 0.0),
    None,
    {"threads": 2.0, "contended": False},
    ((262144, 9e10), (268435456, 2e10)),
    "abc",
    {
        "all_reduce/host": CollectiveRate(
            collective="all_reduce",
            over="host",
            link="nvlink",
            ranks=8,
            groups=2,
            backend="nccl",
            bus=Rate(4e11, 3.9e11, 4.1e11, "calibrated", 0.0),
            times=(CollectiveTime(1024, 2e-5, 1e-5, 3e-5, 7), CollectiveTime(8192, 2.5e-5, 2e-5, 3e-5, 25)),
        )
    },
)


@pytest.fixture(autouse=True)
def _fresh_warnings() -> None:
    guard._said.clear()


def test_round_trip_with_age(tmp_path: Path) -> None:
    """What was saved is read back, older by the time that passed."""
    Results(tmp_path, now=lambda: 1_000_000.0).save(KEY, PEAKS)
    found = Results(tmp_path, now=lambda: 1_000_090.0).load(KEY)
    assert found is not None
    assert found.achievable["float32"] == Rate(1e11, 7e10, 1.3e11, "calibrated", 90.0)
    assert found.memory == Rate(2e10, 1e10, 3e10, "calibrated", 90.0)
    assert found.memory_by_size == PEAKS.memory_by_size
    assert dict(found.state) == dict(PEAKS.state)
    [collective] = PEAKS.collectives.values()
    aged = replace(collective, bus=replace(collective.bus, age_s=90.0))
    assert dict(found.collectives) == {"all_reduce/host": aged}


def test_collectives_keep_their_own_date(tmp_path: Path) -> None:
    """What was kept from an earlier calibration is as old as it is, not as the file."""
    results = Results(tmp_path, now=lambda: 1_000_000.0)
    results.save(KEY, PEAKS)
    later = Results(tmp_path, now=lambda: 1_000_060.0)
    kept = later.load(KEY)
    assert kept is not None
    later.save(KEY, replace(PEAKS, collectives=kept.collectives))
    found = Results(tmp_path, now=lambda: 1_000_090.0).load(KEY)
    assert found is not None
    assert found.achievable["float32"].age_s == 30.0
    assert found.collectives["all_reduce/host"].bus.age_s == 90.0


def test_a_file_without_collectives(tmp_path: Path) -> None:
    """Those of earlier versions have none, and everything else is read."""
    path = Results(tmp_path).save(KEY, PEAKS)
    assert path is not None
    document = json.loads(path.read_text())
    del document["collectives"]
    path.write_text(json.dumps(document))
    found = Results(tmp_path).load(KEY)
    assert found is not None
    assert found.collectives == {}
    assert found.memory_by_size == PEAKS.memory_by_size


def test_another_key_is_unknown(tmp_path: Path) -> None:
    """A calibration holds for its own key alone."""
    Results(tmp_path).save(KEY, PEAKS)
    assert Results(tmp_path).load(KEY | {"threads": 1}) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("100000000000.0", "-1.0"),
        lambda text: text.replace("100000000000.0", "NaN"),
        lambda text: text.replace('"threads": 2\n', '"threads": 4\n'),
        lambda text: text.replace('"seconds": 2e-05', '"seconds": 2e-04'),
        lambda text: text.replace('"size_bytes": 8192', '"size_bytes": 1024'),
        lambda text: text.replace('"over": "host"', '"over": "rack"'),
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 99'),
    ],
    ids=[
        "torn",
        "negative",
        "nan",
        "foreign key",
        "outside of its interval",
        "no ladder",
        "no such ranks",
        "not an object",
        "other format",
    ],
)
def test_a_corrupt_file_is_set_aside(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not trusted, not fatal, kept for whoever wants to look, and said once."""
    results = Results(tmp_path)
    path = results.save(KEY, PEAKS)
    assert path is not None
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    with caplog.at_level(logging.WARNING):
        assert results.load(KEY) is None
    assert not path.exists()
    assert path.with_suffix(".corrupt").exists()
    assert "set aside" in caplog.text
    assert results.save(KEY, PEAKS) == path
    assert results.load(KEY) is not None


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last step of writing fails, the old file stands and no temporary one is left."""
    results = Results(tmp_path)
    path = results.save(KEY, PEAKS)
    assert path is not None
    before = path.read_text()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    guard._said.clear()
    assert results.save(KEY, Peaks("cpu", {}, {}, None, None, {})) is None
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_readable_by_people(tmp_path: Path) -> None:
    """The file is indented JSON that says its units, its key and its date."""
    path = Results(tmp_path, now=lambda: 0.0).save(KEY, PEAKS)
    assert path is not None
    document = json.loads(path.read_text())
    assert document["key"] == KEY
    assert document["measured_at"] == "1970-01-01T00:00:00+00:00"
    assert document["peaks"]["achievable_flops_per_s"]["float32"]["value"] == 1e11
