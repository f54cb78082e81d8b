"""The run id and the attempt that all ranks of a run have, over restarts too; who opens first says them."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mfu_sdk.guard import warn_once
from mfu_sdk.run.key_store import KeyStore, key_store

_opened: dict[str, int] = {}


class Attempt(NamedTuple):
    """A run, and which attempt at it this is: 0 is the first."""

    run_id: str
    number: int


class Moment(NamedTuple):
    """A time by the clock that machines share and that is set now and then, and by what one of them counts on its own.

    `since_boot_ns` since the boot that `boot` tells from others; where it is empty, that is not known.
    """

    unix_ns: int
    boot: str = ""
    since_boot_ns: int = 0

    def is_before(self, other: Moment) -> bool:
        """Whether it is: two times of one boot are compared by its own count."""
        if self.boot and self.boot == other.boot:
            return self.since_boot_ns < other.since_boot_ns
        return self.unix_ns < other.unix_ns


def attempt(run_id: str | None, number: int | None, name: str, world_size: int) -> Attempt:
    """This process's run and attempt: as given, else as the first rank to open said, else its own.

    The n-th monitor of a name in a process is the n-th on every rank, and after every restart. The word of the first
    is one compare-and-set in the store that the ranks share, so nobody waits for anybody. Where torchrun restarts the
    workers, its agent's store still has the word of the attempt before: the id is kept, and the number is one more.
    """
    key = run_id or name
    nth = _opened[key] = _opened.get(key, 0) + 1
    # The second run of a process is another run: their spans must not share ids.
    given = None if run_id is None else run_id if nth == 1 else f"{run_id}.{nth}"
    mine = Attempt(given or _id_of_launch(name, nth) or uuid.uuid4().hex, restarts() if number is None else number)
    # Only torchrun begins attempts that nobody has told us of.
    told = given is not None and (number is not None or "TORCHELASTIC_RUN_ID" not in os.environ)
    if told or (world_size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ):
        return mine
    try:
        shared = key_store()
        if shared is None:
            if world_size > 1 and given is None:
                warn_once(
                    "run id",
                    "ranks without a process group cannot agree on one: open the monitor after init_process_group, "
                    "or set MFU_RUN_ID",
                )
            return mine
        agreed = agree(shared, f"mfu_sdk/run/{key}/{nth}", mine, _now(), _started())
    except (RuntimeError, ValueError, ImportError, KeyError) as error:
        warn_once(
            "run id", f"the process group's store gave no answer ({error}); set MFU_RUN_ID to join ranks and restarts"
        )
        return mine
    return agreed if number is None else agreed._replace(number=number)


def agree(shared: KeyStore, key: str, mine: Attempt, now: Moment, started: Moment | None) -> Attempt:
    """What the first rank of this attempt said under `key`; that is `mine`, or one more than the attempt before.

    What was said before this process began, at `started`, was said by an attempt that is over: torchrun begins no
    worker before the last one of the attempt before is gone, and a worker opens no monitor before it has loaded torch.
    """
    store = shared.store
    said = _said(mine, now)
    found = store.compare_set(key, "", said).decode()
    while found != said:
        told: dict[str, Any] = json.loads(found)
        theirs = Attempt(told["run_id"], told["attempt"])
        when = Moment(told["unix_ns"], told["boot"], told["since_boot_ns"])
        if not shared.outlives or started is None or not when.is_before(started):
            return theirs
        said = _said(Attempt(theirs.run_id, max(theirs.number + 1, mine.number)), now)
        found = store.compare_set(key, found, said).decode()
    told = json.loads(said)
    return Attempt(told["run_id"], told["attempt"])


def restarts(env: Mapping[str, str] | None = None) -> int:
    """How often torchrun's agent has restarted this worker, 0 without one.

    It does not count restarts because nodes have joined, and an agent that has joined counts from 0.
    """
    count = (os.environ if env is None else env).get("TORCHELASTIC_RESTART_COUNT", "")
    return int(count) if count.isascii() and count.isdigit() else 0


def _said(attempt: Attempt, now: Moment) -> str:
    return json.dumps({"run_id": attempt.run_id, "attempt": attempt.number, **now._asdict()})


def _id_of_launch(name: str, nth: int) -> str | None:
    """An id from torchrun's, where that is unique: a UUID, as `--standalone` makes one.

    Others are what people write for `--rdzv-id` ("none", "100"), the same in many runs.
    """
    try:
        launch = uuid.UUID(os.environ.get("TORCHELASTIC_RUN_ID", ""))
    except ValueError:
        return None
    return uuid.uuid5(launch, f"{name}/{nth}").hex


def _now() -> Moment:
    try:
        boot, since_boot_ns = _boot(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return Moment(time.time_ns())
    return Moment(time.time_ns(), boot, since_boot_ns)


def _started() -> Moment | None:
    """When this process began, to 10 ms; None where the system does not tell."""
    try:
        # Field 22, counted from behind the name, which may hold anything (proc(5)).
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        since_boot_ns = ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        unix_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) + since_boot_ns
        return Moment(unix_ns, _boot(), since_boot_ns)
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _boot() -> str:
    """Which boot of which machine this is (random(4)), empty where that is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
