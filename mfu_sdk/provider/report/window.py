"""`--since` and `--until` to a range: an age such as 7d, or a time of ISO 8601."""

import re
from datetime import UTC, datetime
from typing import Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.rollup import Range

_AGE: Final = re.compile(r"(\d{1,9})([smhdw])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
# What DateTime64(9) can hold is 1900 to 2262; a range has to stay well inside it with its predecessor.
_FIRST_NS: Final = 0
_LAST_NS: Final = 8_000_000_000 * 10**9


def parse_range(since: str | None, until: str | None, now_unix_ns: int) -> Range:
    """The range [since, until): a `since` of `7d`, its default, is seven days before `until`, whose default is now.

    An age as `until` counts back from now. Times without a zone are UTC. Raises `ConfigurationError`.
    """
    end = now_unix_ns if until is None else _moment("until", until, now_unix_ns)
    start = _moment("since", since or "7d", end)
    if start >= end:
        raise ConfigurationError(f"since={iso(start)}: must be before until={iso(end)}; give an earlier one")
    return Range(start, end)


def iso(unix_ns: int) -> str:
    """ISO 8601 in UTC, to the microsecond where there is a fraction of a second."""
    seconds, fraction_ns = divmod(unix_ns, 10**9)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=fraction_ns // 1000)
    return moment.isoformat().replace("+00:00", "Z")


def _moment(name: str, text: str, from_unix_ns: int) -> int:
    if age := _AGE.fullmatch(text.strip()):
        unix_ns = from_unix_ns - int(age[1]) * _UNIT_S[age[2]] * 10**9
    else:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            raise ConfigurationError(
                f"{name}={text[:40]!r}: must be an age such as 90m, 24h or 7d, or a time such as 2026-11-01T00:00:00Z"
            ) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
        unix_ns = (delta.days * 86_400 + delta.seconds) * 10**9 + delta.microseconds * 1000
    if not _FIRST_NS <= unix_ns <= _LAST_NS:
        raise ConfigurationError(f"{name}={text[:40]!r}: must lie between 1970 and 2223; give a nearer one")
    return unix_ns
