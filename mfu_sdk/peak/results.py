"""The calibrations on disk: one JSON file a key, readable by people, written atomically, never trusted blindly.

Beside the latest rates a file keeps what earlier runs under the same key found: how much runs differ is what an
interval rests on. Another device's file is never read as this one's; at most it is a prior.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from mfu_sdk import atomic
from mfu_sdk.guard import warn_once
from mfu_sdk.records import CollectiveRate, CollectiveTime, Over, Peaks, Rate

FORMAT = 1
STALE_S = 7 * 24 * 3600.0
"""After a week a calibration is due again: clocks, cooling and neighbours change."""
MOST_PAST = 20
"""Runs of a quantity that are remembered."""
PRIOR_SPREAD = 0.05
"""Chips of one product differ by 5 % and more in what they reach."""

Key = Mapping[str, str | int]
History = Mapping[str, Sequence[float]]
"""What earlier runs found, the oldest first, by quantity and tier ("bfloat16 burst")."""


@dataclass(frozen=True, slots=True)
class Results:
    """The calibrations kept in one directory. A directory that cannot be written costs a warning, not the run."""

    directory: Path
    now: Callable[[], float] = time.time

    def path(self, key: Key) -> Path:
        """The file of `key`: the device's kind in clear, the rest as a hash; the whole key is inside."""
        digest = hashlib.blake2b(json.dumps(dict(key), sort_keys=True).encode(), digest_size=8).hexdigest()
        return self.directory / f"{key.get('kind', 'device')}-{digest}.json"

    def load(self, key: Key) -> Peaks | None:
        """The calibration under `key`, with its age, or None. A file that does not parse is set aside."""
        path = self.path(key)
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            # Where a file stands in a directory's place, `save` says so.
            return None
        except OSError as error:
            warn_once("calibration cache", f"{path} cannot be read ({error}); calibrating without it")
            return None
        try:
            return _decode(json.loads(text), key, self.now())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._set_aside(path, error)
            return None

    def history(self, key: Key) -> History:
        """What earlier runs under `key` found; empty where none is known."""
        try:
            document = json.loads(self.path(key).read_text(encoding="utf-8"))
            found = document["history"].items() if document["key"] == dict(key) else ()
            return {str(name): tuple(float(value) for value in values if value > 0) for name, values in found}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # `load` says what is wrong with a file that is not one; a file from before has no history.
            return {}

    def former(self, key: Key, names: Sequence[str]) -> str | None:
        """In words how this very device's freshest calibration under another key differs from `key`; None without one.

        `names` are the parts of a key that tell devices apart.
        """
        others = [
            (measured, other)
            for measured, other in self._others(key)
            if all(other.get(name) == key.get(name) for name in names)
        ]
        if not others:
            return None
        measured, other = max(others, key=lambda each: each[0])
        parts = sorted({*other, *key})
        return f"that of {measured[:10]} had " + ", ".join(
            f"{part.replace('_', ' ')} {other.get(part, 'unknown')} (now {key.get(part, 'unknown')})"
            for part in parts
            if other.get(part) != key.get(part)
        )

    def _others(self, key: Key) -> Iterator[tuple[str, Key]]:
        """When each calibration of another key and the same kind of device was made, and its key."""
        for path in sorted(self.directory.glob(f"{key.get('kind', 'device')}-*.json")):
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                if dict(document["key"]) != dict(key):
                    yield str(document["measured_at"]), document["key"]
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue

    def prior(self, key: Key, alike: Callable[[Key], object]) -> Peaks | None:
        """The freshest calibration of another key for which `alike` gives what it gives for `key`, as a prior.

        Its rates say whose they are, and their intervals are as wide as chips of one product differ.
        """
        wanted, found = alike(key), None
        for path in sorted(self.directory.glob(f"{key.get('kind', 'device')}-*.json")):
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                other = document["key"]
                if other != dict(key) and alike(other) == wanted:
                    peaks = _as_prior(_decode(document, other, self.now()), str(other.get("uuid", "another device")))
                    if found is None or _age_s(peaks) < _age_s(found):
                        found = peaks
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        return found

    def save(self, key: Key, peaks: Peaks, history: History | None = None) -> Path | None:
        """Write `peaks` and `history` under `key`: all or nothing. None where the directory cannot be written."""
        path = self.path(key)
        now = self.now()
        document = {
            "format": FORMAT,
            "measured_at": _iso(now),
            "key": dict(key),
            "peaks": _encode(peaks, now),
            "history": {name: list(values)[-MOST_PAST:] for name, values in (history or {}).items()},
            "collectives": {name: _encode_collective(each, now) for name, each in peaks.collectives.items()},
        }
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            atomic.write_text(path, json.dumps(document, indent=2) + "\n")
        except OSError as error:
            warn_once("calibration cache", f"{path} cannot be written ({error}); the next run measures again")
            return None
        return path

    def _set_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_suffix(".corrupt")
        try:
            path.replace(aside)
            where = f"set aside as {aside.name}"
        except OSError:
            where = "left where it is"
        warn_once("calibration cache", f"{path} is not a calibration ({error}); {where}, and measured again")


def _as_prior(peaks: Peaks, whose: str) -> Peaks:
    def widened(rate: Rate) -> Rate:
        low = min(rate.low, rate.flops_per_s * (1 - PRIOR_SPREAD))
        high = max(rate.high, rate.flops_per_s * (1 + PRIOR_SPREAD))
        how = rate.source.removeprefix("calibrated: ")
        return Rate(rate.flops_per_s, low, high, f"prior: {how} of {whose}", rate.age_s)

    return replace(
        peaks,
        achievable={dtype: widened(rate) for dtype, rate in peaks.achievable.items()},
        memory=None if peaks.memory is None else widened(peaks.memory),
        calibration_id=None,
        # What is between other devices is another machine's affair.
        collectives={},
    )


def _age_s(peaks: Peaks) -> float:
    return min((rate.age_s for rate in peaks.achievable.values()), default=math.inf)


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def _encode(peaks: Peaks, now: float) -> dict[str, Any]:
    def rate(value: Rate) -> dict[str, Any]:
        # Rates of one file may be of several days: a dtype or a tier is measured when it is wanted.
        measured = {"measured_at": _iso(now - value.age_s)}
        return {"value": value.flops_per_s, "low": value.low, "high": value.high, "source": value.source} | measured

    return {
        "device": peaks.device,
        "achievable_flops_per_s": {dtype: rate(value) for dtype, value in peaks.achievable.items()},
        "theoretical_flops_per_s": {dtype: rate(value) for dtype, value in peaks.theoretical.items()},
        "memory_bytes_per_s": None if peaks.memory is None else rate(peaks.memory),
        "memory_by_size": [list(pair) for pair in peaks.memory_by_size],
        "clock_mhz": peaks.clock_mhz,
        "calibration_id": peaks.calibration_id,
        "state": dict(peaks.state),
    }


def _decode(document: Any, key: Key, now: float) -> Peaks:
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, this version reads {FORMAT}")
    if document["key"] != dict(key):
        raise ValueError("its key is another device's or another version's")
    age_s = max(0.0, now - datetime.fromisoformat(document["measured_at"]).timestamp())
    body = document["peaks"]
    # Files of earlier versions have none.
    collectives = document.get("collectives", {})

    def rate(value: Any) -> Rate:
        middle, low, high = (float(value[name]) for name in ("value", "low", "high"))
        if not (0 < low <= middle <= high and math.isfinite(high)):
            raise ValueError(f"a rate of {middle!r} within [{low!r}, {high!r}]")
        since = datetime.fromisoformat(value["measured_at"]).timestamp() if "measured_at" in value else None
        own_age_s = age_s if since is None else max(0.0, now - since)
        return Rate(middle, low, high, source=str(value["source"]), age_s=own_age_s)

    return Peaks(
        device=str(body["device"]),
        theoretical={dtype: rate(value) for dtype, value in body["theoretical_flops_per_s"].items()},
        achievable={dtype: rate(value) for dtype, value in body["achievable_flops_per_s"].items()},
        memory=None if body["memory_bytes_per_s"] is None else rate(body["memory_bytes_per_s"]),
        clock_mhz=None if body["clock_mhz"] is None else float(body["clock_mhz"]),
        state=dict(body["state"]),
        memory_by_size=tuple((int(size), float(value)) for size, value in body["memory_by_size"]),
        calibration_id=None if body["calibration_id"] is None else str(body["calibration_id"]),
        collectives={name: _decode_collective(each, now) for name, each in collectives.items()},
    )


def _encode_collective(rate: CollectiveRate, now: float) -> dict[str, Any]:
    plain, bus = asdict(rate), rate.bus
    del plain["bus"]
    # A calibration without collectives keeps those of an earlier one, so each has a date of its own.
    measured_at = datetime.fromtimestamp(now - bus.age_s, UTC).isoformat(timespec="seconds")
    of_bus = {"value": bus.bytes_per_s, "low": bus.low, "high": bus.high, "source": bus.source}
    return {"measured_at": measured_at, **plain, "bus_bytes_per_s": of_bus}


def _decode_collective(value: Any, now: float) -> CollectiveRate:
    def interval(low: Any, middle: Any, high: Any) -> tuple[float, float, float]:
        low, middle, high = float(low), float(middle), float(high)
        if not (0 < low <= middle <= high and math.isfinite(high)):
            raise ValueError(f"a collective's {middle!r} within [{low!r}, {high!r}]")
        return low, middle, high

    times: list[CollectiveTime] = []
    for each in value["times"]:
        low_s, seconds, high_s = interval(each["low_s"], each["seconds"], each["high_s"])
        times.append(CollectiveTime(int(each["size_bytes"]), seconds, low_s, high_s, int(each["batches"])))
    sizes = [each.size_bytes for each in times]
    if not sizes or sizes != sorted(set(sizes)) or value["over"] not in get_args(Over):
        raise ValueError(f"a collective over {value['over']!r} at sizes {sizes}")
    bus = value["bus_bytes_per_s"]
    low, middle, high = interval(bus["low"], bus["value"], bus["high"])
    age_s = max(0.0, now - datetime.fromisoformat(value["measured_at"]).timestamp())
    return CollectiveRate(
        collective=str(value["collective"]),
        over=value["over"],
        link=str(value["link"]),
        ranks=int(value["ranks"]),
        groups=int(value["groups"]),
        backend=str(value["backend"]),
        bus=Rate(middle, low, high, source=str(bus["source"]), age_s=age_s),
        times=tuple(times),
    )
