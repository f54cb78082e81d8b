"""What a step of known or new shape costs: counted, looked up, predicted or sampled."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mfu_sdk.counting.plan import Packed, Plan, leading_dimension
from mfu_sdk.records import Convention, Count, Phase
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.forms import Forms

if TYPE_CHECKING:
    from mfu_sdk.run.ledger import Ledger

MOST_DEMANDS: Final = 4096


class Shown(NamedTuple):
    """What a step has shown of itself, which is what its cost is looked up by.

    `settings` stands for what no call shows (which parameters want a gradient), `calls` are the signatures of the
    model's calls, each with its number, and `packed` are the lengths that the loop gave for the step.

    Whether the optimizer stepped is not in it: with accumulated gradients it does so once in several steps, and model
    FLOPs are the same in all of them.
    """

    phase: Phase
    settings: Hashable
    calls: frozenset[tuple[Hashable, int]]
    packed: Packed | None


Seen = tuple[Phase, Hashable, Packed | None, tuple[tuple[int, int], ...]]
"""The same with numbers for calls (`Costs.number`), in the order in which they came first."""


class Alike(NamedTuple):
    """Steps that begin with the same call: what that shows, and if no other comes their calls and their answer."""

    shown: tuple[Hashable, Phase, Hashable, Packed | None]
    calls: Mapping[int, int]
    answer: tuple[Demand, float | None]


class Costs:
    """The costs of one run's steps."""

    def __init__(self, ledger: Ledger, convention: Convention, *, has_model: bool) -> None:
        self._ledger = ledger
        self._has_model = has_model
        self._plan = Plan(convention=convention)
        self._forms = Forms(counters=True)
        # By what the steps showed; and by one kind of call, where that is all that a step had.
        self._demands: dict[Shown, Demand] = {}
        # Signatures by number, and answers by what was seen, until the next step is counted.
        self._calls: list[Hashable] = []
        self._batches: list[int] = []
        self.overfull = False
        """Whether there are too many calls with numbers."""
        self.numbers: dict[Hashable, int] = {}
        """Calls that have a number (`number`); whoever is on the path of a step looks here first."""
        self.quick: dict[Seen, tuple[Demand, float | None]] = {}
        """What steps cost, and their mean leading dimension; likewise before `of_seen` and `batch`."""
        self.alone: dict[Hashable, tuple[Demand, float | None]] = {}
        """The same of steps with one call, by phase, settings, the call's number, and what is packed."""
        self.begins: set[Hashable] = set()
        """With which calls steps of known cost begin: what `begins_known` has said yes to."""
        self.last: Alike | None = None
        """The last of those, for the next step: most are like the one before."""
        self._by_call: dict[Hashable, Demand] = {}
        # Whether a step costs what its calls cost one by one: None as long as no count has shown it.
        self._adds_up: bool | None = None
        self.wants_count = False
        """Whether counting the next step would tell what those like the last one cost."""
        # Calls that counted steps had, alone or among others.
        self._met: set[Hashable] = set()
        self._usual_calls = 1
        self._refuted = False

    def number(self, call: Hashable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        """A number for a call's signature, so that the path of a step takes the signature apart but once.

        `args` and `kwargs` are the call's, whose batch those of the same signature have too.
        """
        found = self.numbers.get(call)
        return self.enter(call, leading_dimension(args, kwargs)) if found is None else found

    def enter(self, call: Hashable, batch: int) -> int:
        """The number of a call with this leading dimension."""
        found = self.numbers.get(call)
        if found is None:
            found = self.numbers[call] = len(self._calls)
            self._calls.append(call)
            self._batches.append(batch)
            self.overfull = found >= MOST_DEMANDS
        return found

    def batch(self, calls: Mapping[int, int]) -> float | None:
        """Mean leading dimension of the calls with these numbers, each as often as it says."""
        if len(calls) == 1:
            [number] = calls
            return self._batches[number] or None
        total = sum(self._batches[number] * times for number, times in calls.items())
        return total / sum(calls.values()) if total else None

    def shown(self, seen: Seen) -> Shown:
        """What a step has shown, with its calls' signatures."""
        phase, settings, packed, calls = seen
        return Shown(phase, settings, frozenset((self._calls[number], times) for number, times in calls), packed)

    def shapes(self, seen: Seen) -> str:
        """A hash of the step's phase and of its calls' shapes, the same in every process: no object's address in it."""
        phase, _settings, packed, calls = seen
        # The first part of a signature is the module's identity.
        shown = sorted((repr(tuple(self._calls[number])[1:]), times) for number, times in calls)  # type: ignore[arg-type]
        return blake2b(repr((phase, packed, shown)).encode(), digest_size=8).hexdigest()

    def of_seen(self, seen: Seen) -> Demand | None:
        """What the step costs, None where that is not known: one look-up, but for the first of its kind."""
        if (known := self.quick.get(seen)) is not None:
            return known[0]
        if (found := self.of(self.shown(seen))) is not None:
            if len(self.quick) >= MOST_DEMANDS:
                self._forget_answers()
            phase, settings, packed, calls = seen
            answer = self.quick[seen] = found, self.batch(dict(calls))
            if len(calls) == 1 and calls[0][1] == 1:
                self.alone[phase, settings, calls[0][0], packed] = answer
        return found

    def forget_calls(self) -> None:
        """Between steps: forget the numbers of calls."""
        self._calls.clear()
        self.overfull = False
        self._batches.clear()
        self.numbers.clear()
        self._forget_answers()
        self.begins.clear()

    def _forget_answers(self) -> None:
        self.quick.clear()
        self.alone.clear()
        self.last = None

    def begins_known(self, phase: Phase, settings: Hashable, number: int, packed: Packed | None) -> bool:
        """`is_known` for a call by its number."""
        key = (phase, settings, number, packed)
        if key in self.begins:
            return True
        known = self.is_known(phase, settings, self._calls[number], packed)
        if known:
            if len(self.begins) >= MOST_DEMANDS:
                self.begins.clear()
            self.begins.add(key)
        return known

    def is_known(self, phase: Phase, settings: Hashable, call: Hashable, packed: Packed | None) -> bool:
        """Whether the cost of a step that begins with `call` is likely to be known at its end."""
        if packed is None:
            return (phase, settings, call) in self._met or self._cost_of((phase, settings, call)) is not None
        shown = Shown(phase, settings, frozenset(((call, self._usual_calls),)), packed)
        return self._plan.lookup(shown) is not None or self._predicted(shown) is not None

    def learn(self, shown: Shown, count: Count) -> None:
        """Keep what a counted step has shown; what had been predicted for it is held against its count."""
        # What was looked up before may have another answer now.
        self._forget_answers()
        self.begins.clear()
        is_new = self._plan.lookup(shown) is None
        expected = self._predicted(shown) if is_new else None
        summed = self._sum(shown) if is_new and _only_call(shown) is None else None
        self._store(shown, count)
        if shown.packed is not None:
            # For packs of which no form says what they cost there is the mean over packs.
            self._store(shown._replace(packed=None), count)
        demand = self.of(shown)
        if demand is None:
            return
        if summed is not None and self._adds_up is not False:
            self._adds_up = _totals(summed) == _totals(demand)
        self.wants_count = False
        if expected is not None and _totals(expected) != _totals(demand):
            self._refute(expected, demand)
        if len(shown.calls) == 1:
            self._learn_calls(shown, demand)

    def _store(self, shown: Shown, count: Count) -> None:
        if len(self._met) >= MOST_DEMANDS:
            self._met.clear()
        self._met.update((shown.phase, shown.settings, call) for call, _ in shown.calls)
        self._plan.store(shown, count)
        self._demands.pop(shown, None)

    def _refute(self, expected: Demand, demand: Demand) -> None:
        self._forget_predictions()
        if not self._refuted:
            self._refuted = True
            self._ledger.note(
                f"a step for which {expected.model_flops:,} model FLOPs had been predicted counted "
                f"{demand.model_flops:,}: they are not a matter of its shapes alone; earlier steps that say predicted "
                "may be wrong too"
            )

    def _learn_calls(self, shown: Shown, demand: Demand) -> None:
        """Where all calls of a step were alike: what one of them costs, for steps with more or with longer ones."""
        [(call, times)] = shown.calls
        self._usual_calls = times
        if shown.packed is None and not any(total % times for total in _totals(demand)):
            self._keep((shown.phase, shown.settings, call), demand.shared(times))
        # A mean of counts that differed is on no polynomial.
        form = _form_key(shown)
        if form is not None and demand.source == "cached" and self._forms.learn(form, demand):
            self._forget_predictions()

    def _forget_predictions(self) -> None:
        self._by_call = {key: cost for key, cost in self._by_call.items() if cost.source != "predicted"}

    def _keep(self, key: Hashable, demand: Demand) -> None:
        if len(self._by_call) >= MOST_DEMANDS:
            self._by_call.clear()
        self._by_call[key] = demand

    def of(self, shown: Shown) -> Demand | None:
        """What the step costs, None where that is not known."""
        if (known := self._demands.get(shown)) is not None:
            return known
        found = self._plan.lookup(shown)
        if found is None:
            if (predicted := self._predicted(shown)) is not None:
                return predicted
            if shown.packed is None:
                return None
            if (found := self._plan.lookup(shown._replace(packed=None))) is None:
                return None
            found = found[0], "sampled"
        count, source = found
        if not shown.calls:
            # Where nothing was seen of a step's shapes, its count is only a sample.
            source = "sampled"
            if self._has_model:
                self._ledger.note(
                    "no call of the model was seen, so its shapes are not known and FLOPs are those of sampled steps; "
                    "give the monitor the module that the loop calls (after torch.compile: what it returned)"
                )
        if len(self._demands) >= MOST_DEMANDS:
            self._demands.clear()
        demand = self._demands[shown] = self._ledger.price(count, source)
        return demand

    def _predicted(self, shown: Shown) -> Demand | None:
        """By a closed form, or as the sum over its calls once a counted step has shown that they add up."""
        form = _form_key(shown)
        if form is not None:
            return self._cost_of(form)
        summed = self._sum(shown)
        if summed is not None and self._adds_up is None:
            self.wants_count = True
        return summed if self._adds_up else None

    def _sum(self, shown: Shown) -> Demand | None:
        """The costs of the calls together, where each is known: a step of other calls, or of another number of them.

        That is the step's cost only where none of its work comes once in a step, whatever the number of calls.
        """
        total: Demand | None = None
        for call, times in shown.calls if shown.packed is None else ():
            one = self._cost_of((shown.phase, shown.settings, call))
            if one is None:
                return None
            part = one.times(times)
            total = part if total is None else total + part
        if total is None or total.source == "sampled":
            return total
        return replace(total, source="predicted")

    def _cost_of(self, key: Hashable) -> Demand | None:
        """What one call, or a step of packed ones, costs: counted or by a closed form."""
        known = self._by_call.get(key)
        if known is None and (known := self._forms.predict(key)) is not None:
            self._keep(key, known)
        return known

    def notes(self) -> list[str]:
        """What a reader should know of counts that one signature does not determine."""
        spreads = self._plan.spreads()
        if not spreads:
            return []
        widest = spreads[0]
        kinds = "kind of step" if len(spreads) == 1 else "kinds of steps"
        return [
            f"{len(spreads)} {kinds} had counts that differed under one signature, of which the mean is reported; the "
            f"widest: {widest.counts} counts of {widest.least:,} to {widest.most:,} model FLOPs, mean {widest.mean:,}, "
            f"standard deviation {widest.deviation:,}; packed lengths can be told (run.step(seq_lens=…)), routing and "
            "branches cannot"
        ]


def _only_call(shown: Shown) -> Hashable | None:
    """The call of a step that had one only."""
    if len(shown.calls) == 1:
        [(call, times)] = shown.calls
        return call if times == 1 else None
    return None


def _form_key(shown: Shown) -> Hashable | None:
    """What closed forms know a step by: its only call; or all of them, alike, and the lengths packed into them."""
    if shown.packed is None:
        call = _only_call(shown)
        return None if call is None else (shown.phase, shown.settings, call)
    if len(shown.calls) != 1:
        return None
    [(call, times)] = shown.calls
    return shown.phase, shown.settings, call, (int, times), shown.packed


def _totals(demand: Demand) -> tuple[int, int]:
    return demand.model_flops, demand.hardware_flops
