"""The collectives of a process group, measured over each kind of link that its ranks share.

All ranks take part and come to the same record, in which the slowest rank's time counts. Groups are made for the
measurement and destroyed after it; the user's own carry nothing, unless it is one of them that shall be measured.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from mfu_sdk.counting.collective_time import COLLECTIVES
from mfu_sdk.errors import CalibrationError, ConfigurationError
from mfu_sdk.peak.collective_ladder import SIZES, Everyone, climb
from mfu_sdk.peak.device import resolve
from mfu_sdk.peak.placing import Seat, Span, by_host, edges, spans, weakest
from mfu_sdk.peak.rollcall import RollCall, line_of
from mfu_sdk.records import CollectiveRate, Collectives

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

CPU_MOST_BYTES = 1 << 25
"""The largest message between processors: 32 MiB."""
# All tensors of a message may take this much of the free memory of the device that has the least. They are at most:
# the numbers that operands are made of, what goes in, what comes out, what must come out, and one on the way to it.
MEMORY_SHARE, TENSORS = 0.1, 5
WAIT_S = 30.0

Progress = Callable[[str, float], None]
LinkBetween = Callable[[str, str], str | None]


def measure(
    group: ProcessGroup | None = None,
    *,
    budget_s: float = 3.0,
    wait_s: float = WAIT_S,
    link_between: LinkBetween | None = None,
    progress: Progress | None = None,
) -> Collectives:
    """Measure the collectives of the default process group, or of `group` alone, within about `budget_s` seconds.

    A collective act: all ranks of the group must call it, with the same arguments. Without `group`, over the ranks of
    each host, over one rank of each host, and over all ranks, in groups that are made here; with `group`, over that
    group itself and as it is. `link_between` tells of two devices of this host, by their UUIDs, what joins them
    ("nvlink", "pcie-switch", "host-bridge", …), or None. Hosts are told apart as NCCL does it: by NCCL_HOSTID, else by
    name and boot id.

    A rank that does not come within `wait_s` seconds is named in the `CalibrationError` that all others raise. After
    that a call that a rank does not answer ends with gloo after `wait_s`, with other backends after the timeout that
    they have by default, and with `group` after that group's own. Raises `CalibrationError` also for a result that is
    wrong, and `ConfigurationError` where there is no process group, or no rank of this process in `group`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigurationError(
            "collectives: no process group is up; call torch.distributed.init_process_group first, "
            "or run `mfu calibrate --collectives` under torchrun"
        )
    for name, value in (("budget_s", budget_s), ("wait_s", wait_s)):
        if not value > 0:
            raise ConfigurationError(f"{name}={value}: must be above 0 seconds; leave it out for the usual")
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ConfigurationError("group: this process is none of its ranks; call it on the group's ranks only")
    if size == 1:
        return Collectives({}, "a group of one rank has no collectives: start more ranks", {"ranks": 1.0})
    device, backend = _device_of(group)
    roll = RollCall(_store(), _name(group), rank, size, wait_s)
    heard = progress or (lambda _label, _share: None)
    try:
        with _undisturbed(device):
            return _Measurement(group, roll, device, backend, wait_s).run(budget_s, link_between, heard)
    except CalibrationError:
        raise
    except RuntimeError as error:
        # What hangs or breaks here is most often another rank's doing, and the first that gave up has left word.
        raise CalibrationError(f"collectives over {size} ranks: {roll.failure() or line_of(error)}") from error


def host_identity() -> str:
    """This host as NCCL tells hosts apart: NCCL_HOSTID, else host name and boot id (its `getHostHash`)."""
    if given := os.environ.get("NCCL_HOSTID"):
        return given
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return f"{platform.node()} {boot}".strip()


class _Measurement:
    """One rank's part in measuring a group; the same path through it on all ranks."""

    def __init__(
        self, group: ProcessGroup | None, roll: RollCall, device: torch.device, backend: str, wait_s: float
    ) -> None:
        self.group = group
        self.roll = roll
        self.device = device
        self.backend = backend
        self.wait_s = wait_s
        self.rank = dist.get_rank(group)

    def run(self, budget_s: float, link_between: LinkBetween | None, progress: Progress) -> Collectives:
        """Come together, measure, and part."""
        with ExitStack() as made:
            try:
                return self._run(made, budget_s, link_between, progress)
            except BaseException as error:
                # Before the groups go down: that is what the others notice first.
                self.roll.fail(error)
                raise

    def _run(
        self, made: ExitStack, budget_s: float, link_between: LinkBetween | None, progress: Progress
    ) -> Collectives:
        seats, most_bytes = self._meet(budget_s)
        hosts = by_host(seats)
        found, reason = spans(seats, self._links(hosts, link_between), apart=self.group is None)
        missing = [] if reason is None else [reason]
        rates: dict[str, CollectiveRate] = {}
        whole = self.group or self._make(range(len(seats)), made)
        assert whole is not None
        groups = [self._groups(span, whole, made) for span in found]
        everyone = Everyone(self.rank, whole, self.device, self.backend, self.roll)
        everyone.check()
        until = time.perf_counter() + budget_s
        todo = [(span, own, each) for span, own in zip(found, groups, strict=True) for each in COLLECTIVES]
        for done, (span, own, collective) in enumerate(todo):
            progress(f"{collective} over {span.link}", done / len(todo))
            # Clocks differ, and ends of ladders do; the share that the last rank has left is everyone's.
            (spent,) = everyone.agree(time.perf_counter() - until)
            share_s = max(0.0, -spent) / (len(todo) - done)
            rate = climb(everyone, span, own, collective, share_s, most_bytes)
            if isinstance(rate, str):
                missing.append(rate)
            else:
                rates[f"{collective}/{span.over}"] = rate
        # Nobody takes a group down that another one still uses.
        self.roll.exchange("done")
        state: dict[str, str | float | bool] = {
            "backend": self.backend,
            "device": self.device.type,
            "ranks": float(len(seats)),
            "hosts": float(len(hosts)),
        }
        return Collectives(rates, "; ".join(missing) or None, state)

    def _meet(self, budget_s: float) -> tuple[list[Seat], int]:
        """Where everyone sits, and the largest message that all have room for."""
        told = self.roll.exchange(
            {
                "host": host_identity(),
                "device": resolve(self.device).uuid,
                "free": torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None,
                "arguments": [budget_s, self.wait_s, self.device.type, self.backend],
            }
        )
        for rank, each in enumerate(told):
            if each["arguments"] != told[0]["arguments"]:
                raise CalibrationError(
                    f"rank {rank} measures with [budget_s, wait_s, device, backend] = {each['arguments']}, rank 0 with "
                    f"{told[0]['arguments']}: call it with the same on all ranks"
                )
        seats = [Seat(rank, each["host"], each["device"]) for rank, each in enumerate(told)]
        if self.device.type == "cpu":
            return seats, CPU_MOST_BYTES
        return seats, max(SIZES[1], int(MEMORY_SHARE / TENSORS * min(each["free"] for each in told)))

    def _links(self, hosts: Mapping[str, Sequence[Seat]], link_between: LinkBetween | None) -> dict[str, str]:
        """Each host's weakest edge, as its own ranks tell it: drivers know of their own host's devices only."""
        mine = next(of for of in hosts.values() if any(seat.rank == self.rank for seat in of))
        kinds = [None if pair is None or link_between is None else link_between(*pair) for pair in edges(mine)]
        told = self.roll.exchange(weakest(kinds))
        return {host: told[of[0].rank] for host, of in hosts.items()}

    def _groups(self, span: Span, whole: ProcessGroup, made: ExitStack) -> ProcessGroup | None:
        """This rank's group of `span`, or None. Every rank makes all of them, in the same order, as torch wants it."""
        if span.ranks == whole.size():
            return whole
        own = None
        for ranks in span.groups:
            own = self._make(ranks, made) or own
        return own

    def _make(self, ranks: Iterable[int], made: ExitStack) -> ProcessGroup | None:
        """A group of `ranks`; None where this rank is none of them."""
        # NCCL's watchdog ends the process when a timeout is over, so that stays as long as it is by default.
        timeout = timedelta(seconds=self.wait_s) if self.backend == "gloo" else None
        group = dist.new_group(list(ranks), timeout=timeout)
        if not isinstance(group, dist.ProcessGroup):
            return None
        made.callback(_destroy, group)
        return group


def _device_of(group: ProcessGroup | None) -> tuple[torch.device, str]:
    """Where the group's tensors lie and which backend carries them: a GPU's own backend goes before gloo."""
    backends = dict(pair.split(":", 1) for pair in dist.get_backend_config(group).split(",") if ":" in pair)
    if torch.cuda.is_available() and backends.get("cuda", "gloo") != "gloo":
        return torch.device("cuda", torch.cuda.current_device()), backends["cuda"]
    if "cpu" in backends:
        return torch.device("cpu"), backends["cpu"]
    raise ConfigurationError(
        f"collectives: the group's backends ({dist.get_backend_config(group)}) carry neither processors' nor CUDA "
        "tensors here; use gloo or nccl"
    )


def _store() -> Store:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _name(group: ProcessGroup | None) -> str:
    return "collectives" if group is None else f"collectives of {group.group_name}"


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Without gradients or autocast, and on a GPU in a stream of its own, whatever the user has set."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(torch.cuda.stream(torch.cuda.Stream(device)))
        yield


def _destroy(group: ProcessGroup) -> None:
    # After an error a group may not go down in good order, and the error is what counts.
    with suppress(RuntimeError, ValueError):
        dist.destroy_process_group(group)
