"""Findings that are kept: one for each workload, cause and day, and what people decided about them.

A day is judged when somebody asks for it, again while it may still change, and finally once it has been over for six
hours. What was decided about a cause of a workload, on whatever day, holds for that day and those after it.
"""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal, get_args

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider import causes
from mfu_sdk.provider.books import Holdings
from mfu_sdk.provider.causes import Evidence, Finding
from mfu_sdk.provider.contested import Contested
from mfu_sdk.provider.detection import Detection
from mfu_sdk.provider.rollup import Range, Usage
from mfu_sdk.provider.store import Row, Store
from mfu_sdk.records import DriftEvent

State = Literal["open", "acknowledged", "muted"]
STATES: Final[tuple[State, ...]] = get_args(State)
SETTLES_NS: Final = 6 * 3600 * 10**9
"""How long after its end a day's spans may still come."""
FRESH_NS: Final = 600 * 10**9
"""A day that may still change is judged again when its judgement is this old."""
MOST_DAYS: Final = 31
"""Days that one request judges, the latest ones."""
LOOK_BACK_NS: Final = 2 * 86_400 * 10**9
"""How far back the provider's own search for drift begins, to learn what a run was like before."""
_DAY_NS: Final = 86_400 * 10**9
_LONGEST_NOTE: Final = 1000


@dataclass(frozen=True, slots=True)
class Kept:
    """A finding and what was decided about it: by whom, when in nanoseconds since 1970, and why."""

    finding: Finding
    state: State
    by: str | None = None
    at_unix_ns: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a range says: every workload's evidence, all findings, and which causes could not be reckoned, and why."""

    evidence: tuple[Evidence, ...]
    findings: tuple[Finding, ...]
    left_out: Mapping[str, str]


class Findings:
    """The findings of one store. Safe to use from several threads; one of them judges at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._detection = Detection(store)
        self._lock = threading.Lock()

    def judge(self, span: Range, holdings: Holdings | None, now_unix_ns: int) -> tuple[str, ...]:
        """Judge the days of `span` that need it: those of which there is no judgement that still holds."""
        with self._lock:
            days = [day for day in _days(span) if _start_ns(day) <= now_unix_ns][-MOST_DAYS:]
            if not days:
                return ()
            seen = {row["day"]: row["judged_unix_ns"] for row in self._store.read("judged_days", **_bounds(days))}
            due = tuple(day for day in days if _is_due(day, seen.get(day), now_unix_ns))
            for day in due:
                start = _start_ns(day)
                whole = Range(start, min(start + _DAY_NS, now_unix_ns))
                judged = judge(self._store, whole, holdings, self.look(whole))
                rows = [_columns(each, now_unix_ns) for each in judged.findings]
                self._store.insert("mfu_findings", rows)
                # Last: until it is there, the day's earlier judgement holds.
                self._store.insert("mfu_judged_days", [{"day": day, "judged_unix_ns": now_unix_ns}])
            return due

    def kept(self, span: Range, tenant: str | None) -> tuple[Kept, ...]:
        """What is kept of the days of `span`: of `tenant` alone, or of all where it is None; the latest days first."""
        days = _days(span)
        rows = self._store.read("findings", **_bounds(days), everyone=int(tenant is None), tenant=tenant or "")
        return decided(self._store, (_finding(row) for row in rows))

    def decide(self, finding_id: str, state: str, by: str, note: str, now_unix_ns: int) -> Kept:
        """Set the state of a finding, for its day and those after it. Raises `ConfigurationError`, `KeyError`."""
        if state not in STATES:
            raise ConfigurationError(f"state={state[:40]!r}: must be one of {', '.join(STATES)}")
        if len(note) > _LONGEST_NOTE:
            raise ConfigurationError(f"note of {len(note)} letters: may have {_LONGEST_NOTE}; shorten it")
        series, _, day = finding_id.partition("-")
        start = _start_ns(day) if _is_day(day) else None
        known = () if start is None else self.kept(Range(start, start + 1), None)
        found = next((each for each in known if each.finding.id == finding_id), None)
        if found is None:
            raise KeyError(finding_id)
        row = {"series": series, "day": day, "state": state, "by": by, "note": note, "at_unix_ns": now_unix_ns}
        self._store.insert("mfu_finding_states", [row])
        return decided(self._store, [found.finding])[0]

    def drifts(self, span: Range) -> list[Row]:
        """Excursions in `span` that were found so far where tenants' processes do not look, as sql/read/drifts.sql."""
        found = self._detection.found.values()
        return [_excursion(row, event, span) for row, events in found for event in events if _lies_in(event, span)]

    def look(self, span: Range) -> list[Row]:
        """Look for excursions up to the end of `span`; those in it, as `drifts`."""
        self._detection.look(max(0, span.since_unix_ns - LOOK_BACK_NS), span.until_unix_ns)
        return self.drifts(span)


def judge(
    store: Store,
    span: Range,
    holdings: Holdings | None = None,
    drifts: Sequence[Row] = (),
    usages: Sequence[Usage] | None = None,
    contests: Sequence[Contested] | None = None,
) -> Judged:
    """The findings of all tenants over `span`, with what is known of their workloads.

    `usages` and `contests` as in `evidence`.
    """
    evidence = tuple(causes.evidence(store, span, holdings, drifts, usages, contests))
    left_out: dict[str, str] = {}
    if holdings is None:
        left_out |= {"mig_fragmentation": "no inventory", "idle_allocation": "no inventory"}
    return Judged(evidence, causes.judge(evidence), left_out)


def decided(store: Store, found: Iterable[Finding], *, latest: bool = False) -> tuple[Kept, ...]:
    """Findings with the latest decision about their causes that is of their day or an earlier one, or of any day."""
    decisions: dict[str, list[Row]] = {}
    for row in store.read("finding_states"):
        decisions.setdefault(row["series"], []).append(row)
    kept = []
    for finding in found:
        rows = [row for row in decisions.get(finding.series, ()) if latest or row["day"] <= finding.day]
        if not rows:
            kept.append(Kept(finding, "open"))
            continue
        last = rows[-1]
        state: State = next(each for each in STATES if each == last["state"])
        kept.append(Kept(finding, state, last["by"], last["at_unix_ns"], last["note"]))
    return tuple(kept)


def to_json(kept: Iterable[Kept]) -> str:
    """`{"findings": [{"id", "day", "state", "tenant", …}]}`."""
    return json.dumps({"findings": [_told(each) for each in kept]}, ensure_ascii=False, allow_nan=False)


def one_to_json(kept: Kept) -> str:
    """One finding as in the list."""
    return json.dumps(_told(kept), ensure_ascii=False, allow_nan=False)


def _told(kept: Kept) -> dict[str, Any]:
    decision = {"state": kept.state, "by": kept.by, "at_unix_ns": kept.at_unix_ns, "note": kept.note}
    return {"id": kept.finding.id, **decision, **asdict(kept.finding)}


# --- days ----------------------------------------------------------------------------------------------------------


def _days(span: Range) -> list[str]:
    first = datetime.fromtimestamp(span.since_unix_ns // 10**9, UTC).date()
    last = datetime.fromtimestamp((span.until_unix_ns - 1) // 10**9, UTC).date()
    return [(first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1)]


def _start_ns(day: str) -> int:
    return (date.fromisoformat(day) - date(1970, 1, 1)).days * _DAY_NS


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _bounds(days: list[str]) -> dict[str, str]:
    return {"first": days[0], "last": days[-1]}


def _is_due(day: str, judged_unix_ns: int | None, now_unix_ns: int) -> bool:
    if judged_unix_ns is None:
        return True
    settled = _start_ns(day) + _DAY_NS + SETTLES_NS
    return judged_unix_ns < settled and (now_unix_ns >= settled or now_unix_ns - judged_unix_ns >= FRESH_NS)


# --- rows ----------------------------------------------------------------------------------------------------------


def _columns(finding: Finding, judged_unix_ns: int) -> dict[str, Any]:
    row = asdict(finding) | {"series": finding.series, "judged_unix_ns": judged_unix_ns}
    row["evidence"] = json.dumps(row["evidence"], ensure_ascii=False, allow_nan=False)
    return row


def _finding(row: Row) -> Finding:
    return Finding(**{**row, "evidence": json.loads(row["evidence"])})


def _lies_in(event: DriftEvent, span: Range) -> bool:
    end = span.until_unix_ns if event.recovered_unix_ns is None else event.recovered_unix_ns
    return event.kind == "drop" and event.onset_unix_ns < span.until_unix_ns and end > span.since_unix_ns


def _excursion(row: Row, event: DriftEvent, span: Range) -> Row:
    """An event of the run of `row`, as sql/read/drifts.sql tells those of tenants' own processes."""
    return {
        **row,
        "phase": event.phase,
        "kind": event.kind,
        "cause": event.cause,
        "change": event.change,
        "onset_step": event.onset_step,
        "onset_unix_ns": event.onset_unix_ns,
        "end_unix_ns": event.recovered_unix_ns or span.until_unix_ns,
        "diff": event.fingerprint_diff,
    }
