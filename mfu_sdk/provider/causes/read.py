"""From a store and the books to evidence: reads, and leaves every decision to the pure modules.

Without an inventory nothing is known of what is allocated or cut into slices: `mig_fragmentation` and
`idle_allocation` are not reckoned then.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from mfu_sdk.provider import fleet, rollup
from mfu_sdk.provider.books import Holdings
from mfu_sdk.provider.causes.context import complete
from mfu_sdk.provider.causes.evidence import LINKS, Drift, Earlier, Evidence
from mfu_sdk.provider.causes.gather import Run, Sign, Unit, gather, unit_of, witnessed
from mfu_sdk.provider.causes.held import Heard, held
from mfu_sdk.provider.causes.hours import MOST_HOURS, Hour, judged
from mfu_sdk.provider.causes.parts import clocked, with_parts
from mfu_sdk.provider.contested import Contested, contested
from mfu_sdk.provider.rollup import Range, Usage, ratio
from mfu_sdk.provider.store import Row, Store

HISTORY_NS: Final = 90 * 86_400 * 10**9
"""How far back earlier runs are looked for."""


def evidence(
    store: Store,
    span: Range,
    holdings: Holdings | None = None,
    found: Sequence[Row] = (),
    usages: Sequence[Usage] | None = None,
    contests: Sequence[Contested] | None = None,
) -> list[Evidence]:
    """What is known of every workload over `span`, of all tenants.

    `found` are excursions that the provider found, as sql/read/drifts.sql tells those of tenants' processes.

    `usages` are all tenants' sums over `span`, `contests` what of them is contested, where they have been read already.
    """
    bounds = {"since": span.since_unix_ns, "until": span.until_unix_ns}
    day = f"{datetime.fromtimestamp(span.since_unix_ns / 1e9, UTC):%Y-%m-%d}"
    signs: dict[Unit, list[Sign]] = {}
    for row in store.read("signs", **bounds):
        signs.setdefault(_unit(row), []).append(_sign(row))
    drifts = _drifts([*store.read("drifts", **bounds), *found], signs, span)
    answers = {
        (row["tenant"], row["workload"] or None): (_finite(row["token_s"]), _finite(row["request_s"]))
        for row in store.read("answers", **bounds)
    }
    usages = rollup.usages(store, span, None) if usages is None else usages
    watched = fleet.witnessed(store, span)
    gathered = [witnessed(each, watched.get(tuple(each.unit))) for each in gather(day, usages, signs, drifts, answers)]
    since = max(0, span.since_unix_ns - HISTORY_NS)
    runs: dict[tuple[object, ...], list[Run]] = {}
    for row in store.read("history", since=since, until=span.until_unix_ns):
        if (run := _run(row)) is not None:
            runs.setdefault(_unit({**row, "intent": ""}).kin, []).append(run)
    hours = _hours(store, span)
    if hours:
        seen: dict[str, dict[int, float]] = {}
        for row in store.read("clocks", **bounds):
            seen.setdefault(row["device"], {})[row["hour_unix_s"]] = float(row["mhz"])
        gathered, hours = clocked(gathered, hours, usages, seen)
    nodes = () if holdings is None else holdings.inventory.nodes
    links: dict[str, str] = {}
    host_links = {node.host: node.link for node in nodes if node.link in LINKS}
    sizes: dict[str, int] = {}
    for node in nodes:
        sizes[node.gpu_type] = max(sizes.get(node.gpu_type, 0), node.gpus)
        if node.link in LINKS:
            links[node.gpu_type] = max(links.get(node.gpu_type, "none"), node.link, key=LINKS.index)
    contests = contested(store, span, holdings, usages) if contests is None else contests
    taken = {(each.tenant, each.device) for each in contests}
    doubted = {unit_of(usage) for usage in usages if (usage.tenant, usage.device) in taken}
    completed = complete(gathered, runs, links, sizes, host_links, doubted)
    completed = with_parts(completed, [each.unit for each in gathered], hours)
    if holdings is None:
        return completed
    heard = [
        Heard(row["tenant"], row["workload"] or None, row["host"] or None, row["device"], float(row["heard_s"]))
        for row in store.read("heard", **bounds)
    ]
    unused = {row["device"]: float(row["unused_s"]) for row in store.read("unused", **bounds)}
    return held(completed, usages, holdings, heard, span, unused)


def _hours(store: Store, span: Range) -> dict[Unit, tuple[Hour, ...]]:
    """The hours of each unit; nothing for a range of more than are looked at."""
    if span.until_unix_ns - span.since_unix_ns > MOST_HOURS * 3600 * 10**9:
        return {}
    found: dict[Unit, list[Hour]] = {}
    for row in store.read("hours", since=span.since_unix_ns, until=span.until_unix_ns):
        slowest, clock_known_s = row["slowest_clock"] or 0.0, row["clock_s"]
        found.setdefault(_unit(row), []).append(
            Hour(
                row["hour_unix_s"], row["step_time_s"], row["model_flop"], row["available_flop"],
                row["data_s"], row["data_known_s"], row["comm_s"], row["comm_known_s"],
                row["skew_s"], row["skew_known_s"], row["bus_rate_weighted"], row["bus_rate_s"],
                row["clock_weighted"], clock_known_s, slowest * clock_known_s, clock_known_s if slowest > 0 else 0.0,
            )
        )  # fmt: skip
    return {unit: judged(of) for unit, of in found.items()}


def _unit(row: Row) -> Unit:
    return Unit(
        row["tenant"], row["workload"] or None, row["family"] or None, row["gpu_type"] or None,
        None if row["world_size"] < 0 else row["world_size"], row["intent"] or None, row["fingerprint"] or None,
        row["phase"] or None,
    )  # fmt: skip


def _sign(row: Row) -> Sign:
    known_s = row["throttle_known_s"] or None
    tokens = row["tokens"] or None
    # Tokens are of all steps that did not fail, FLOPs of those that are known.
    flops, steps = ratio(row["model_flop"], row["known_steps"]), ratio(tokens, row["steps"])
    return Sign(
        rank=None if row["rank"] < 0 else row["rank"],
        host=row["host"] or None,
        device=row["device"],
        time_s=row["time_s"] or 0.0,
        first_unix_ns=row["first_unix_ns"],
        last_unix_ns=row["last_unix_ns"],
        dp=row["dp"],
        heat=ratio(row["heat_s"], known_s),
        cap=ratio(row["cap_s"], known_s),
        skew=ratio(row["skew_s"], row["skew_known_s"]),
        comm=ratio(row["comm_s"], row["comm_known_s"]),
        bus_bytes_per_s=row["bus_rate"] or None,
        bus_peak_bytes_per_s=row["bus_peak"] or None,
        comm_bytes_per_step=ratio(row["comm_bytes"], row["comm_steps"]) or None,
        witnessed_mfu=ratio(row["witnessed_hardware_flop"], row["witnessed_available_flop"]),
        dtype_mix=ratio(row["by_dtype_s"], row["by_peak_s"]),
        flops_per_token=ratio(flops, steps),
        attention=ratio(row["attention_flop"], row["attended_flop"] or None),
        peak_dtype=row["peak_dtype"] or None,
        peak_source=row["peak_source"] or None,
        clock=ratio(row["clock_s"], row["clock_known_s"]) or None,
        places={kind: tuple(row[kind]) for kind in ("driver", "image", "pool", "zone") if row[kind]},
    )


def _drifts(rows: Sequence[Row], signs: Mapping[Unit, Sequence[Sign]], span: Range) -> dict[Unit, tuple[Drift, ...]]:
    """Excursions downwards by unit, of the first rank that tells any: the ranks of a run slow down together."""
    found: dict[Unit, dict[tuple[str, int], list[Drift]]] = {}
    for row in rows:
        unit = _unit(row)
        seen = signs.get(unit)
        if row["kind"] != "drop" or not seen or row["change"] is None:
            continue
        since = max(min(sign.first_unix_ns for sign in seen), span.since_unix_ns)
        until = min(max(sign.last_unix_ns for sign in seen), span.until_unix_ns)
        lay = min(row["end_unix_ns"], until) - max(row["onset_unix_ns"], since)
        if lay <= 0 or until <= since:
            continue
        # A client may claim anything; nothing is slower than not at all.
        change = max(-1.0, row["change"])
        drift = Drift(row["cause"], change, row["onset_step"] or 0, lay / (until - since), tuple(row["diff"]))
        found.setdefault(unit, {}).setdefault((row["run_id"], row["rank"]), []).append(drift)
    return {unit: tuple(min(ranks.items(), key=lambda item: item[0])[1]) for unit, ranks in found.items()}


def _run(row: Row) -> Run | None:
    timed, unknown, time_s = row["timed_steps"], row["unknown_steps"] or 0.0, row["step_time_s"]
    if not timed or not time_s or not row["model_flop"] or unknown >= timed:
        return None
    known_s = time_s * (1 - unknown / timed)
    rank_tokens = ratio(row["tokens"] or None, row["steps"])
    told = Earlier(
        row["run_id"],
        row["fingerprint"],
        row["model_flop"] / known_s,
        None if rank_tokens is None else rank_tokens * timed / time_s,
        ratio(row["batch_s"], row["batch_time_s"]),
        ratio(row["available_flop"], known_s),
    )
    return Run(row["start_unix_s"], told, rank_tokens)


def _finite(value: float | None) -> float | None:
    return value if value is not None and 0 < value < float("inf") else None
