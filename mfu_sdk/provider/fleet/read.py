"""From a store and an inventory to what the provider's exporters saw: reads, and decides nothing."""

from fractions import Fraction
from typing import Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.books import Holdings, mig
from mfu_sdk.provider.fleet.gpu import Gpu
from mfu_sdk.provider.fleet.health import Failures, Shown
from mfu_sdk.provider.fleet.witness import Witness, witnesses
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.store import Row, Store

_HOUR_NS: Final = 3600 * 10**9
_FIELDS: Final = tuple(
    name for name in Gpu.__dataclass_fields__ if name not in ("host", "gpu", "gpu_type", "share", "first_unix_ns")
)


def gpus(store: Store, span: Range, holdings: Holdings | None) -> tuple[Gpu, ...]:
    """Every GPU, or slice of one, that was told of in `span`; on the inventory's node and of its type where it is."""
    if not _watched(store, span):
        return ()
    keys, since, until, shares = _stretches(span, holdings)
    rows = store.read("gpus", **_bounds(span), keys=keys, since_ns=since, until_ns=until, shares=shares)
    return tuple(_gpu(row, holdings) for row in rows)


def shown(store: Store, span: Range, seen: tuple[Gpu, ...]) -> tuple[Shown, ...]:
    """The Xids and ECC counts of the GPUs that were `seen`, on the hosts that those are on."""
    hosts = {each.gpu: each.host for each in seen}
    return tuple(
        Shown(
            hosts[row["gpu"]],
            row["gpu"],
            row["metric"],
            row["value"],
            row["previous"],
            row["first_ns"],
            row["known_ns"],
            row["last_ns"],
        )
        for row in store.read("gpu_errors", **_bounds(span))
        if row["gpu"] in hosts
    )


def failures(store: Store, span: Range) -> dict[str, Failures]:
    """Failed steps and runs by host; the number of all steps is the roll-up's to tell."""
    return {
        row["host"]: Failures(
            failed_steps=row["failed_steps"] if row["step_spans"] else None,
            runs=row["runs"],
            failed_runs=row["failed_runs"],
        )
        for row in store.read("failures", **_bounds(span))
    }


def witnessed(store: Store, span: Range) -> dict[tuple[object, ...], Witness]:
    """What the provider's exporters say of each configuration that had GPUs to itself for whole hours of `span`."""
    since = -(-span.since_unix_ns // _HOUR_NS) * _HOUR_NS
    until = span.until_unix_ns // _HOUR_NS * _HOUR_NS
    if since >= until or not _watched(store, span):
        return {}
    return witnesses(store.read("witnessed", since=since, until=until))


def _watched(store: Store, span: Range) -> bool:
    # Most stores hold nothing of exporters, and should not pay for that.
    return bool(store.read("watched", **_bounds(span)))


def _bounds(span: Range) -> dict[str, int]:
    return {"since": span.since_unix_ns, "until": span.until_unix_ns}


def _stretches(span: Range, holdings: Holdings | None) -> tuple[list[str], list[str], list[str], list[str]]:
    """Who holds what when, for the query: a GPU by its UUID, else its host with the share that is held of it.

    Of a host on which some GPUs are held by name, the share is that of the others.
    """
    columns: tuple[list[str], list[str], list[str], list[str]] = ([], [], [], [])
    parts = () if holdings is None else holdings.held(span.since_unix_ns, span.until_unix_ns)
    for part in parts:
        assert holdings is not None
        held = part.allocation
        node = holdings.node(held.host, part.since_unix_ns)
        if node is None:
            continue
        times = (str(part.since_unix_ns), str(part.until_unix_ns))
        # Slices are held by their own UUIDs, which an exporter does not tell.
        named = held.gpu_uuids if held.profile is None else ()
        for uuid in named:
            _append(columns, uuid, *times, "1")
        rest = part.gpus - len(named)
        if rest > 0:
            others = node.gpus - _named(holdings, held.host, part.since_unix_ns)
            _append(columns, f"host:{held.host}", *times, str(float(min(Fraction(1), rest / max(others, 1)))))
    return columns


def _append(columns: tuple[list[str], ...], *values: str) -> None:
    for column, value in zip(columns, values, strict=True):
        column.append(value)


def _named(holdings: Holdings, host: str, at_unix_ns: int) -> int:
    return len({
        uuid
        for held in holdings.holders(at_unix_ns, host=host)
        if held.profile is None
        for uuid in held.gpu_uuids
    })  # fmt: skip


def _gpu(row: Row, holdings: Holdings | None) -> Gpu:
    node = None
    if holdings is not None:
        node = holdings.node_of(row["gpu"]) or holdings.node(row["host"], row["first_ns"])
    gpu_type = node.gpu_type if node is not None else row["gpu_type"] or None
    return Gpu(
        host=row["host"] if node is None else node.host,
        gpu=row["gpu"],
        gpu_type=gpu_type,
        share=_share(gpu_type, row["profile"]),
        first_unix_ns=row["first_ns"],
        **{name: row[name] for name in _FIELDS},
    )


def _share(gpu_type: str | None, profile: str) -> float | None:
    if not profile:
        return 1.0
    if gpu_type is None:
        return None
    try:
        return float(mig.profile(gpu_type, profile).sm_share)
    except (ConfigurationError, ValueError):
        return None
