"""Cells to values: what a key of a row may hold, and one line that says so where it does not."""

import itertools
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.books.table import FORM, Entry

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LISTED: Final = re.compile(r"[\s;]+")


def keys(entry: Entry, needed: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse a row that lacks one of `needed`, or has a key that is neither needed nor `allowed`."""
    needed = tuple(needed)
    known = {*needed, *allowed}
    for key in entry.cells:
        if key not in known:
            raise ConfigurationError(f"{entry.where}: {key!r} is no key of this table; it may have {_list(known)}")
    for key in needed:
        if key not in entry.cells:
            raise ConfigurationError(f"{entry.where}: lacks `{key}`; {FORM}")


def text(entry: Entry, key: str) -> str | None:
    """A name; None where the row does not have it."""
    value = entry.cells.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise wrong(entry, key, "must be text that is not empty; put it in quotes")
    return value


def texts(entry: Entry, key: str) -> tuple[str, ...]:
    """Names: a list in YAML, parted by spaces or semicolons in CSV."""
    value = entry.cells.get(key)
    if value is None:
        return ()
    listed = [part for part in _LISTED.split(value) if part] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(item, str) and item.strip() for item in listed):
        raise wrong(entry, key, "must be a list of names, such as [a, b], in CSV `a b`")
    if len(set(listed)) != len(listed) and key != "layout":
        raise wrong(entry, key, "names one thing twice; leave the second out")
    return tuple(listed)


def amount(entry: Entry, key: str) -> Decimal | None:
    """Money or hours, exact as written; None where the row does not have it."""
    value = entry.cells.get(key)
    if value is None:
        return None
    try:
        # A float prints as its shortest decimal, which is what was written.
        found = Decimal("NaN") if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite() or not 0 <= found <= 10**12:
        raise wrong(entry, key, "must be a number from 0 to 10^12; write it plainly, such as 2.95")
    return found


def whole(entry: Entry, key: str, least: int) -> int | None:
    """A whole number of at least `least`; None where the row does not have it."""
    value = entry.cells.get(key)
    if value is None:
        return None
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value) else value
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 10**9:
        raise wrong(entry, key, f"must be a whole number from {least}")
    return number


def moment(entry: Entry, key: str) -> int | None:
    """Nanoseconds since 1970; a date is its midnight in UTC, and so is a time without a zone."""
    value = entry.cells.get(key)
    return None if value is None else _unix_ns(entry, key, value)


def span(entry: Entry) -> tuple[int | None, int | None]:
    """The row's [from, until); None: without a beginning, or without an end."""
    since, until = moment(entry, "from"), moment(entry, "until")
    if since is not None and until is not None and since >= until:
        raise wrong(entry, "until", f"must be after from={entry.cells['from']!s}; `until` is the first moment without")
    return since, until


def spans(entry: Entry, key: str) -> tuple[tuple[int, int | None], ...]:
    """Several [from, until): a list of mappings in YAML, `from/until` parted by spaces or semicolons in CSV."""
    value = entry.cells.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        parts = [part.split("/") for part in _LISTED.split(value) if part]
        value = [dict(zip(("from", "until"), ends, strict=True)) if len(ends) == 2 else None for ends in parts]
    found: list[tuple[int, int | None]] = []
    for number, item in enumerate(value if isinstance(value, list) else [None], 1):
        if not isinstance(item, Mapping):
            raise wrong(entry, key, "must be a list of {from: …, until: …}, in CSV `from/until`")
        part = Entry(f"{entry.where}: {key} {number}", {k: v for k, v in item.items() if v})
        keys(part, ("from",), ("until",))
        since, until = span(part)
        assert since is not None
        found.append((since, until))
    found.sort(key=lambda one: one[0])
    for (_, end), (start, _) in itertools.pairwise(found):
        if end is None or end > start:
            raise ConfigurationError(f"{entry.where}: {key} has two spans that overlap; join them into one")
    return tuple(found)


def shown(unix_ns: int) -> str:
    """A moment as these files write it, to the second."""
    return datetime.fromtimestamp(unix_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def wrong(entry: Entry, key: str, rule: str) -> ConfigurationError:
    """The error for what `entry` holds under `key`: the value, the rule, the remedy."""
    value = entry.cells.get(key)
    found = value.isoformat() if isinstance(value, date) else repr(value)
    return ConfigurationError(f"{entry.where}: {key}={found[:80]} {rule}")


def _unix_ns(entry: Entry, key: str, value: Any) -> int:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            value = None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime) or not 1970 <= value.year <= 2200:
        raise wrong(entry, key, "must be a date or a time of ISO 8601 from 1970 to 2200, such as 2027-01-01")
    delta = (value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 10**9 + delta.microseconds * 1000


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
