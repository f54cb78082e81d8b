"""The directory of flight recorders: made for its user alone, offered at the next start, bounded in files and bytes."""

import contextlib
import os
from pathlib import Path
from typing import Final

from mfu_sdk import guard
from mfu_sdk.export import flight
from mfu_sdk.export.flight_file import FlightFile

SUFFIX: Final = ".mfurec"
MOST_FILES: Final = 32
"""Files that are kept; at two mebibytes each that is also the bound in bytes. The oldest goes first, and none that a
live process has."""


def prepare(directory: Path) -> None:
    """Make `directory` for its user alone; one that exists is taken as it is. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def offer(directory: Path, mine: Path) -> None:
    """Say once in the life of this process what earlier ones have left, and drop what is beyond the bound."""
    with guard.shield("recorder"):
        left = _left(directory, mine)
        for path in left[:-MOST_FILES]:
            _drop(path)
        if kept := left[-MOST_FILES:]:
            files = str(kept[0]) if len(kept) == 1 else str(directory / f"*{SUFFIX}")
            guard.warn_once(
                "recorder",
                f"{len(kept)} earlier run{'s' * (len(kept) > 1)} here ended before all was told: "
                f"`mfu replay {files}` delivers the rest (--otlp URL names the collector)",
            )


def _left(directory: Path, mine: Path) -> list[Path]:
    """Files that no live process has, the oldest first."""
    found = []
    for entry in os.scandir(directory):
        if not entry.name.endswith(SUFFIX) or entry.name == mine.name:
            continue
        # Another process may tidy as well, or a file be another user's.
        with contextlib.suppress(OSError):
            age = entry.stat(follow_symlinks=False).st_mtime_ns
            taken = FlightFile.take(Path(entry.path))
            if taken is None:
                continue
            if taken.read(len(flight.MAGIC)) == flight.MAGIC:
                found.append((age, Path(entry.path)))
            else:
                # Made and never written: the process ended in between.
                taken.remove()
            taken.close()
    return [path for _, path in sorted(found)]


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError):
        taken = FlightFile.take(path)
        if taken is not None:
            taken.remove()
            taken.close()
