"""What `sacct --parsable2` prints, to allocations: a row for each node of each job that held GPUs.

sacct tells the GPUs of a job, not those of each of its nodes: where they do not divide evenly the job is left to be
written by hand. Its times have no zone; they are those of `zone`. An allocation is called as the SDK calls it in
`mfu.allocation.id`: "slurm-" and the job, 123 or 123_4 in an array.
"""

import csv
import io
import re
from datetime import UTC, datetime, tzinfo
from typing import Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.books.imported import Imported, Row, stamp

COMMAND: Final = (
    "sacct --parsable2 --allocations --allusers --starttime 2026-11-01 --format"
    " JobID,JobName,Account,NodeList,AllocTRES,Start,End"
)
_NEEDED: Final = ("JobID", "Account", "NodeList", "AllocTRES", "Start", "End")
_GPUS: Final = re.compile(r"gres/gpu(?::(?P<type>[^=,]+))?=(?P<count>\d+)")
_PROFILE: Final = re.compile(r"\d+g\.\d+gb")
# As sacct writes a time that is not there: of a job that waits, or runs still.
_NEVER: Final = frozenset({"", "Unknown", "None", "N/A"})


def from_sacct(text: str, zone: tzinfo = UTC) -> Imported:
    """Allocations of the jobs in `text`, whose first line names the columns; steps of jobs are passed over.

    Raises `ConfigurationError` where the text is not sacct's or lacks a column.
    """
    rows = list(csv.reader(io.StringIO(text), delimiter="|", quoting=csv.QUOTE_NONE))
    header = rows[0] if rows else []
    lacking = [name for name in _NEEDED if name not in header]
    if lacking:
        raise ConfigurationError(f"sacct: the first line lacks {', '.join(lacking)}; take it from `{COMMAND}`")
    found: list[Row] = []
    left_out: list[str] = []
    for number, cells in enumerate(rows[1:], 2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise ConfigurationError(
                f"sacct: line {number} has {len(cells)} cells where the first names {len(header)};"
                " leave JobName out if names hold a bar"
            )
        job = dict(zip(header, cells, strict=True))
        if "." not in job["JobID"]:
            _job(job, zone, found, left_out)
    return Imported(tuple(found), tuple(left_out))


def hosts(nodelist: str) -> tuple[str, ...]:
    """The hosts of a Slurm node list: `gpu[01-03,7],login` is gpu01, gpu02, gpu03, gpu7 and login."""
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        names = [""]
        for text, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", part):
            ends = [text] if text else _numbers(ranges)
            names = [name + end for name in names for end in ends]
        found += names
    return tuple(found)


def _numbers(ranges: str) -> list[str]:
    found = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        # Leading zeros are part of the name.
        found += [f"{n:0{len(first)}d}" for n in range(int(first), int(last or first) + 1)]
    return found


def _job(job: dict[str, str], zone: tzinfo, found: list[Row], left_out: list[str]) -> None:
    gpus, profile = _gpus(job["AllocTRES"])
    if not gpus or job["Start"] in _NEVER:
        return
    since = _moment(job, "Start", zone)
    until = None if job["End"] in _NEVER else _moment(job, "End", zone)
    if until is not None and until <= since:
        return
    nodes = hosts(job["NodeList"])
    if not nodes or gpus % len(nodes):
        left_out.append(
            f"job {job['JobID']}: {gpus} GPUs on {len(nodes)} nodes ({job['NodeList']}) do not divide; see"
            f" `scontrol show job --details {job['JobID']}` and write a row for each node"
        )
        return
    found += [
        Row(
            tenant=job["Account"],
            workload=job.get("JobName") or None,
            allocation_id=f"slurm-{job['JobID']}",
            host=host,
            gpus=gpus // len(nodes),
            profile=profile,
            since=stamp(since),
            until=None if until is None else stamp(until),
        )
        for host in nodes
    ]


def _gpus(tres: str) -> tuple[int, str | None]:
    """GPUs of `gres/gpu=8,gres/gpu:h100=8`, and the MIG profile where the type names one."""
    whole, typed, profiles = 0, 0, set[str | None]()
    for match in _GPUS.finditer(tres):
        if match["type"] is None:
            whole = int(match["count"])
        else:
            typed += int(match["count"])
            profile = _PROFILE.search(match["type"])
            profiles.add(profile[0] if profile else None)
    return whole or typed, profiles.pop() if len(profiles) == 1 else None


def _moment(job: dict[str, str], name: str, zone: tzinfo) -> datetime:
    try:
        moment = datetime.fromisoformat(job[name])
    except ValueError:
        raise ConfigurationError(
            f"sacct: job {job['JobID']}: {name}={job[name][:40]!r} is no time of ISO 8601; unset SLURM_TIME_FORMAT"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
