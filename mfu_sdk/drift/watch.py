"""All streams of a run: each step to its own, what cannot be judged counted, and a state that outlives the process."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from mfu_sdk.drift.account import Asked
from mfu_sdk.drift.budget import Budget
from mfu_sdk.drift.detector import NAME, Tuning
from mfu_sdk.drift.stream import MEASURES, Excursion, Stream

STATE_VERSION: Final = 1
MOST_STREAMS: Final = 64
"""Streams that are watched; steps of further ones are counted."""

Ignored = Literal["no_flops", "no_time", "no_room"]
"""Why a step was not judged: nothing known that it asked for, no time in it that is one, or too many streams."""
_Key = tuple[str, int | None]


class Watch:
    """Which steps are what we expect. Not thread-safe; knows no clock and no file."""

    def __init__(self, tuning: Tuning | None = None, budget: Budget | None = None) -> None:
        self.tuning = tuning or Tuning()
        self._budget = budget or Budget()
        self._streams: dict[_Key, Stream] = {}
        self._warm: dict[_Key, list[Mapping[str, Any]]] = {}
        self.ignored: Counter[Ignored] = Counter()
        """Steps that were not judged, by reason."""

    def add(
        self,
        phase: str,
        asked: Asked | None,
        index: int,
        start_unix_ns: int,
        duration_s: float,
        tokens: int | None = None,
        data_s: float | None = None,
        batch: float | None = None,
    ) -> Excursion | None:
        """Enter a timed step that has ended: the excursion that began, or ended, with it.

        In training the batch is configuration; elsewhere it is load, and each doubling of it is a stream of its own.
        """
        if asked is None or asked.model_flops <= 0:
            self.ignored["no_flops"] += 1
            return None
        # NaN is not between these either.
        if not 0.0 < duration_s < math.inf:
            self.ignored["no_time"] += 1
            return None
        key = (phase, None if phase in MEASURES or not batch else math.frexp(batch)[1])
        stream = self._streams.get(key)
        if stream is None:
            if len(self._streams) >= MOST_STREAMS:
                self.ignored["no_room"] += 1
                return None
            stream = self._open(key)
        return stream.add((index, start_unix_ns, asked, duration_s, tokens, data_s, batch))

    @property
    def excursions(self) -> list[Excursion]:
        """What was found and has not recovered."""
        return [stream.excursion for stream in self._streams.values() if stream.excursion is not None]

    def scores(self) -> dict[str, float]:
        """By phase: the most evidence that any stream of it has, over what it needs."""
        found: dict[str, float] = {}
        for (phase, _), stream in self._streams.items():
            if stream.watching:
                found[phase] = max(found.get(phase, 0.0), stream.score)
        return found

    def _open(self, key: _Key) -> Stream:
        stream = self._streams[key] = Stream(key[0], self.tuning, self._budget)
        if (runs := self._warm.pop(key, None)) is not None:
            stream.warm(runs)
        return stream

    # --- what outlives the process ---------------------------------------------------------------------------------

    def state(self) -> str:
        """Everything learnt so far, as JSON: for the same run after a restart."""
        streams = [[*key, stream.state()] for key, stream in self._streams.items()]
        return json.dumps({"version": STATE_VERSION, "detector": NAME, "streams": streams}, allow_nan=False)

    def restore(self, text: str) -> bool:
        """Go on where `state` was told; False, and nothing changed, where `text` is of another version or no state."""
        try:
            told = json.loads(text)
            if (told["version"], told["detector"]) != (STATE_VERSION, NAME):
                return False
            streams: dict[_Key, Stream] = {}
            for phase, load, state in told["streams"]:
                streams[str(phase), load] = stream = Stream(str(phase), self.tuning, self._budget)
                stream.restore(state)
        except (ValueError, KeyError, TypeError, ArithmeticError):
            return False
        self._streams = dict(list(streams.items())[:MOST_STREAMS])
        return True

    def baselines(self) -> list[Any]:
        """The baselines of streams that have one, as plain data: for later runs of the same configuration."""
        return [[*key, found] for key, stream in self._streams.items() if (found := stream.baselines()) is not None]

    def warm(self, runs: Sequence[list[Any]]) -> bool:
        """Begin with what `baselines` told of earlier runs instead of a warm-up, where all of them have the stream.

        False, and nothing changed, where one of them is none of ours.
        """
        try:
            tables = [{(str(phase), load): found for phase, load, found in run} for run in runs]
            shared = [key for key in (tables[-1] if tables else {}) if all(key in table for table in tables)]
            warm = {key: [table[key] for table in tables] for key in shared}
            for key, found in warm.items():
                Stream(key[0], self.tuning, self._budget).warm(found)
        except (ValueError, KeyError, TypeError, ArithmeticError):
            return False
        self._warm = dict(warm)
        for key, stream in self._streams.items():
            # It may have seen its first steps before the configuration was known.
            if key in self._warm and not stream.watching:
                stream.warm(self._warm.pop(key))
        return True
