"""The firewall: after start, an error of ours never reaches the user's code.

`shield(where)` is a context manager for the places where our code runs inside the user's. It logs an error once
for each place and type, and swallows it; under ``MFU_GUARD=raise``, which the test suites set, it lets it through.
Errors raised by the *user's* code are never inside a shield.
"""

import logging
import os
from types import TracebackType
from typing import Final

log: Final = logging.getLogger("mfu_sdk")
# A library stays silent until its host configures logging, except for warnings, which Python's last resort prints.

_said: set[tuple[str, str]] = set()


def warn_once(where: str, message: str) -> None:
    """Log one warning for each (where, message) in the life of the process."""
    if (where, message) not in _said:
        _said.add((where, message))
        log.warning("mfu_sdk: %s: %s", where, message)


def contained(where: str, error: BaseException | None) -> bool:
    """Log an error of ours once; False under ``MFU_GUARD=raise``, where the caller raises it again."""
    if os.environ.get("MFU_GUARD", "").strip().lower() == "raise":
        return False
    key = (where, type(error).__name__)
    if key not in _said:
        _said.add(key)
        log.warning(
            "mfu_sdk: %s failed and is left out from here on (%s: %s); the run goes on. "
            "MFU_GUARD=raise lets such errors through.",
            where,
            type(error).__name__,
            error,
            exc_info=log.isEnabledFor(logging.DEBUG),
        )
    return True


class shield:  # noqa: N801 - a context manager that is read as a word: `with shield("count"):`
    """Keep an error of ours inside: logged once, swallowed, or let through under ``MFU_GUARD=raise``.

    A plain class, not `contextlib.contextmanager`: it sits on the step path, where a generator would cost three
    times as much.
    """

    __slots__ = ("failed", "where")

    def __init__(self, where: str) -> None:
        self.where = where
        self.failed = False

    def __enter__(self) -> "shield":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        # KeyboardInterrupt and SystemExit are the user's: they pass.
        if kind is None or not issubclass(kind, Exception):
            return False
        self.failed = True
        return contained(self.where, error)
