"""Steps that a later attempt at the same run did again: work that was lost when the earlier one ended.

A run keeps its id when it is restarted, and its attempt rises. A later attempt begins at the step after the checkpoint
that it resumed from, so that what the earlier ones did from there on was in vain. What cannot be known: the checkpoint
itself, which no signal tells of, and whether an attempt that begins at step 0 began anew or does not tell where it
resumed (`start_step=`). The latter counts nothing as lost, and is told of. Steps that were lost and never done again
are in no figure, nor is the time between two attempts, which has no steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mfu_sdk.provider.rollup import Range, usage_of
from mfu_sdk.provider.store import Row, Store

Steps = tuple[int, int]
"""The numbers of a first and a last step, both done."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Of a row of use: the seconds of its steps that were done again, and their tokens, None where it tells none."""

    seconds: float
    tokens: float | None


@dataclass(frozen=True, slots=True)
class Redone:
    """What was lost of each row of use, by `Usage.identity`; how many runs began again at step 0."""

    lost: Mapping[tuple[object, ...], Lost]
    untold_runs: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on what is not known."""
        if not self.untold_runs:
            return ()
        return (
            f"{self.untold_runs:,} runs began at step 0 again after a restart: whether they resumed from a checkpoint"
            " is not told, and none of their work counts as lost. Let the loop say where it resumes, by `start_step=`.",
        )


NOTHING = Redone({})


def redone(store: Store, span: Range) -> Redone:
    """What of the steps in `span` a later attempt did again, of all tenants."""
    bounds = {"since": span.since_unix_ns, "until": span.until_unix_ns}
    attempts: dict[tuple[str, str], dict[int, Steps]] = {}
    for row in store.read("attempts", since=span.since_unix_ns):
        attempts.setdefault((row["tenant"], row["run_id"]), {})[row["attempt"]] = row["first_step"], row["last_step"]
    # Most fleets' runs have one attempt, and should not pay for those that have more.
    rows = store.read("redone", **bounds) if attempts else []
    return reckoned(rows, attempts)


def reckoned(rows: Iterable[Row], attempts: Mapping[tuple[str, str], Mapping[int, Steps]]) -> Redone:
    """What each of `rows` lost to the `attempts` at its run that came after its own.

    A row's steps are taken to have been equally long and to have had as many tokens each.
    """
    lost: dict[tuple[object, ...], Lost] = {}
    for row in rows:
        steps = row["first_step"], row["last_step"]
        later = [done for number, done in attempts[row["tenant"], row["run_id"]].items() if number > row["attempt"]]
        share = share_done_again(steps, later)
        if not share or not row["step_time_s"]:
            continue
        key = usage_of(row).identity
        before = lost.get(key, Lost(0.0, None))
        tokens = before.tokens if row["tokens"] is None else (before.tokens or 0.0) + share * row["tokens"]
        lost[key] = Lost(before.seconds + share * row["step_time_s"], tokens)
    untold = sum(
        any(first == 0 for number, (first, _) in run.items() if number > min(run)) for run in attempts.values()
    )
    return Redone(lost, untold)


def share_done_again(steps: Steps, later: Sequence[Steps]) -> float:
    """The share of `steps` that is in any of the `later` ones, those that begin at step 0 left out."""
    first, last = steps
    if last < first:
        return 0.0
    done = 0
    reached = first
    for begin, end in sorted(span for span in later if span[0] > 0):
        begin = max(begin, reached)
        end = min(end, last)
        if end >= begin:
            done += end - begin + 1
            reached = end + 1
    return done / (last - first + 1)
