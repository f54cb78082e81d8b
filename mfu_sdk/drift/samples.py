"""What sampled steps show of a run over time: which kernels made its steps up, and how long its device worked.

Steps are put together by `BIN_STEPS`, so that memory does not grow with the run and an onset still has steps on either
side of it. What *changed* between two times must not be what comes and goes with shapes: a kernel has gone where all
bins before had it and no later one has any of it, and has come the other way round. It must also matter, by taking
`MAIN_SHARE` of a step's time where it ran: what a step does now and then is nobody's choice.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

BIN_STEPS: Final = 32
KEPT_BINS: Final = 256
"""8,192 steps or more, twice as far back as an onset is looked for."""
LATEST_BINS: Final = 16
"""Before an onset, the kernels of so many bins are what was usual."""
MAIN_SHARE: Final = 0.01
"""The share of a step's time from which on a kernel matters."""
MOST_NAMES: Final = 256
"""Kernels of a step that are remembered, those with the most time."""


class Ran(NamedTuple):
    """What one sampled step showed, empty or None where it did not.

    `kernels` are seconds by kernel, by names that are the same in every launch; `worked_s` are the seconds in which the
    device worked, for `hardware_flops`; `exposed_s` those in which it waited for what other ranks sent.
    """

    kernels: Mapping[str, float]
    worked_s: float | None
    hardware_flops: int
    exposed_s: float | None = None


class Change(NamedTuple):
    """Kernels that no longer run, and that did not run before, by name."""

    gone: tuple[str, ...]
    come: tuple[str, ...]


@dataclass(slots=True)
class _Bin:
    first: int
    last: int
    # None until a step told of its kernels: those that mattered in every step, and those that ran in any.
    usual: frozenset[str] | None = None
    names: frozenset[str] = frozenset()
    worked_s: float = 0.0
    hardware_flops: int = 0


class Samples:
    """The sampled steps of one phase of a run, in order. Knows no clock."""

    def __init__(self) -> None:
        self._bins: deque[_Bin] = deque(maxlen=KEPT_BINS)
        self._closed = False

    def add(self, step: int, ran: Ran) -> None:
        """Enter what the step of this index showed; nothing where it showed nothing."""
        if not ran.kernels and ran.worked_s is None:
            return
        last = self._bins[-1] if self._bins else None
        if last is None or self._closed or not 0 <= step - last.first < BIN_STEPS:
            self._bins.append(found := _Bin(step, step))
            # Most steps are of the same kernels: their names are held once.
            known, self._closed = last, False
        else:
            found = known = last
        found.last = step
        if ran.kernels:
            _enter(found, ran.kernels, known)
        if ran.worked_s is not None and ran.hardware_flops > 0:
            found.worked_s += ran.worked_s
            found.hardware_flops += ran.hardware_flops

    def begin_anew(self) -> None:
        """The next step begins a bin of its own, whatever came before it."""
        self._closed = True

    def known(self, before: int, since: int) -> tuple[bool, bool]:
        """Whether any step before `before` was sampled, and any from `since` on."""
        return bool(self._before(before)), bool(self._since(since))

    def changed(self, before: int, since: int) -> Change | None:
        """Which kernels ran before the step `before` and no longer from `since` on, and the reverse; None: not known.

        Both sides need to have been sampled.
        """
        old = [each for each in self._before(before) if each.usual is not None][-LATEST_BINS:]
        new = [each for each in self._since(since) if each.usual is not None]
        if not old or not new:
            return None
        gone = _in_all(old) - _in_any(new)
        come = _in_all(new) - _in_any(old)
        return Change(tuple(sorted(gone)), tuple(sorted(come)))

    def seconds_a_flop(self, before: int, since: int) -> tuple[float | None, float | None]:
        """Seconds of work for each hardware FLOP, before the step `before` and from `since` on."""
        return _per_flop(self._before(before)), _per_flop(self._since(since))

    def _before(self, step: int) -> list[_Bin]:
        return [each for each in self._bins if each.last < step]

    def _since(self, step: int) -> list[_Bin]:
        return [each for each in self._bins if each.first >= step]


def _enter(found: _Bin, seconds: Mapping[str, float], known: _Bin | None) -> None:
    names = frozenset(sorted(seconds, key=lambda name: -seconds[name])[:MOST_NAMES])
    least_s = MAIN_SHARE * sum(seconds.values())
    main = frozenset(name for name in names if seconds[name] >= least_s)
    usual, names = main if found.usual is None else found.usual & main, found.names | names
    if known is not None:
        usual, names = known.usual if usual == known.usual else usual, known.names if names == known.names else names
    found.usual, found.names = usual, names


def _in_all(bins: Iterable[_Bin]) -> frozenset[str]:
    first, *rest = (each.usual or frozenset() for each in bins)
    return first.intersection(*rest)


def _in_any(bins: Iterable[_Bin]) -> frozenset[str]:
    return frozenset().union(*(each.names for each in bins))


def _per_flop(bins: list[_Bin]) -> float | None:
    flops = sum(each.hardware_flops for each in bins)
    return sum(each.worked_s for each in bins) / flops if flops else None
