"""What a call of the model costs: counted the first time, looked up or predicted from then on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from mfu_sdk.counting.expect import main_dtype
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.forms import Forms

MOST_SHAPES = 4096
"""Call shapes whose cost is kept; of more, the one unused for longest is forgotten."""
FREE_COUNTS, CALLS_A_COUNT = 256, 50
"""Calls with new shapes are counted as they come, so many at once, then one in so many calls."""


class CallCosts:
    """The costs of one handler's calls by their signatures. Not thread-safe: its methods are called in turn."""

    def __init__(self) -> None:
        self._demands: OrderedDict[Hashable, Demand] = OrderedDict()
        self._forms = Forms()
        self._counts = self._calls = 0
        self.dtype: str | None = None
        """The dtype of most FLOPs of the call counted last."""

    def should_count(self, key: Hashable) -> bool:
        """Whether a call that begins now should run under the counting mode."""
        if key in self._demands:
            self._demands.move_to_end(key)
            return False
        if (predicted := self._forms.predict(key)) is not None:
            self._keep(key, predicted)
            return False
        if self._counts >= FREE_COUNTS + self._calls // CALLS_A_COUNT:
            return False
        self._counts += 1
        return True

    def learn(self, key: Hashable, demand: Demand) -> None:
        """Keep what a counted call cost."""
        self.dtype = main_dtype(demand.by_dtype)
        if self._forms.learn(key, demand):
            for other in [other for other, cost in self._demands.items() if cost.source == "predicted"]:
                del self._demands[other]
        self._keep(key, demand)

    def of(self, key: Hashable) -> Demand | None:
        """What a call that has ended cost, None where that is not known."""
        self._calls += 1
        return self._demands.get(key)

    def _keep(self, key: Hashable, demand: Demand) -> None:
        self._demands[key] = demand
        if len(self._demands) > MOST_SHAPES:
            self._demands.popitem(last=False)
