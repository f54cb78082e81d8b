"""What is kept of drift between processes: baselines by configuration, and a run's state over its restarts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mfu_sdk.atomic import write_text
from mfu_sdk.drift.fingerprint import Fingerprint
from mfu_sdk.drift.watch import STATE_VERSION
from mfu_sdk.guard import shield
from mfu_sdk.records import DriftEvent

if TYPE_CHECKING:
    from mfu_sdk.drift.watch import Watch
    from mfu_sdk.records import RunIdentity


class Left(NamedTuple):
    """What an attempt leaves to the next one besides its watch.

    That is its configuration, as steps of `phase` showed it, and its events that go on.
    """

    phase: str
    configuration: Fingerprint
    main: frozenset[str]
    """Its operators that matter (`configuration.Shown`)."""
    clock_mhz: float | None
    """The device's clock while nothing was wrong."""
    events: tuple[DriftEvent, ...]


WARM_RUNS: Final = 3
"""Earlier runs of a configuration that a new one needs to begin without a warm-up: one alone says nothing of how much
runs differ."""
KEPT_RUNS: Final = 8
SAVE_EVERY_S: Final = 60.0
KEPT_STATES: Final = 64
"""States of runs that are kept, the latest ones."""


class DriftFiles:
    """The files of one run. Ranks share baselines, which rank 0 writes; each rank has a state of its own.

    A state is kept only where the user names the run (MFU_RUN_ID): nobody could find another one's again.
    """

    def __init__(
        self,
        folder: Path,
        identity: RunIdentity,
        *,
        named: bool,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._writes_baselines = identity.rank == 0
        name = blake2b(f"{identity.run_id}\0{identity.rank}".encode(), digest_size=8).hexdigest()
        self._state = folder / f"run-{name}.json" if named else None
        self._baselines: Path | None = None
        self._monotonic_s = monotonic_s
        self._kept_s = monotonic_s()

    def begin(self, fingerprint: str, watch: Watch) -> Left | None:
        """The configuration is known: go on where this run stopped, or begin with what earlier ones of it reached.

        Returns what the attempt has left that it goes on from.
        """
        self._baselines = self._folder / f"baseline-{fingerprint}.json"
        with shield("reading what is known of drift"):
            # A run that was started again with another configuration is held against what it was before.
            if self._state is not None and watch.restore(text := _text(self._state)):
                return _left(text)
            runs = self._runs()
            if len(runs) >= WARM_RUNS:
                watch.warm(runs)
        return None

    def keep(self, watch: Watch, left: Callable[[], Left | None]) -> None:
        """Write the run's state now, if it has learnt anything."""
        if self._state is None or not watch.scores():
            return
        with shield("keeping the state of drift"):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._state, _state(watch, left()))
            self._kept_s = self._monotonic_s()

    def keep_at_times(self, watch: Watch, left: Callable[[], Left | None]) -> None:
        """Write it where the last time was a minute ago."""
        if self._state is not None and self._monotonic_s() - self._kept_s >= SAVE_EVERY_S:
            self.keep(watch, left)

    def close(self, watch: Watch, left: Callable[[], Left | None]) -> None:
        """The run is over: keep its state, and its baselines where they are its own."""
        self.keep(watch, left)
        with shield("keeping the baselines of drift"):
            self._prune()
            found = watch.baselines()
            if not found or self._baselines is None or not self._writes_baselines:
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            runs = [*self._runs(), found][-KEPT_RUNS:]
            write_text(self._baselines, json.dumps({"version": STATE_VERSION, "runs": runs}, allow_nan=False))

    def _runs(self) -> list[Any]:
        """The baselines of earlier runs, none where the file is missing, broken or of another version."""
        if self._baselines is None:
            return []
        try:
            told = json.loads(_text(self._baselines))
            return list(told["runs"]) if told["version"] == STATE_VERSION else []
        except (ValueError, KeyError, TypeError):
            return []

    def _prune(self) -> None:
        states = sorted(self._folder.glob("run-*.json"), key=os.path.getmtime) if self._folder.exists() else []
        for path in states[:-KEPT_STATES]:
            path.unlink(missing_ok=True)


def _state(watch: Watch, left: Left | None) -> str:
    told = json.loads(watch.state())
    if left is not None:
        told |= {
            "phase": left.phase,
            "configuration": left.configuration.facts,
            "main": sorted(left.main),
            "clock_mhz": left.clock_mhz,
            "events": [asdict(event) for event in left.events],
        }
    return json.dumps(told, allow_nan=False)


def _left(text: str) -> Left | None:
    """What a state says besides the watch's own; None where it says nothing, or in another version's words."""
    try:
        told = json.loads(text)
        phase = str(told["phase"])
        main = frozenset(str(op) for op in told["main"])
        clock_mhz = None if told["clock_mhz"] is None else float(told["clock_mhz"])
        facts = tuple((str(name), str(fact)) for name, fact in told["configuration"])
        events = tuple(
            DriftEvent(**{**event, **{name: tuple(event[name]) for name in ("evidence", "fingerprint_diff")}})
            for event in told["events"]
        )
    except (ValueError, KeyError, TypeError):
        return None
    return Left(phase, Fingerprint(facts), main, clock_mhz, events)


def _text(path: Path) -> str:
    """What a file holds, nothing where it is missing or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
