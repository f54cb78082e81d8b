"""The page of what a step costs, made of the newest results of benchmarks/overhead.py and benchmarks/telemetry.py."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

Table = Callable[[tuple[str, ...], Iterable[tuple[str, ...]]], str]


def newest(benchmark: str) -> tuple[str, dict[str, Any]]:
    """The name and the contents of a benchmark's last result, by the date in its name."""
    path = max(RESULTS.glob(f"*-{benchmark}-*.json"), key=lambda path: path.name)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return path.name, found


def origin(name: str, result: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    return f"[{name}](../../benchmarks/results/{name}), {result['date'][:10]}: {result['machine']}; {versions}"


def bounds(result: dict[str, Any], table: Table) -> str:
    rows = [
        (name, f"{row['measured']:g}", f"{row['bound']:g}", "yes" if row["holds"] else "**no**")
        for name, row in result["bounds"].items()
    ]
    return table(("bound", "measured", "at most", "holds"), rows)


def price(table: Table) -> str:
    """The page; `table` writes a table as the other pages have it."""
    loop_name, loop = newest("overhead")
    told_name, told = newest("telemetry")
    added = [
        (
            name,
            f"{row['main_added_us']:,.1f}",
            "{:,.1f} to {:,.1f}".format(*row["main_added_quartiles_us"]),
            f"{row['cold_added_us']:,.1f}",
            f"{row['elsewhere_added_us']:,.1f}",
            f"{row['process_added_us']:,.1f}",
        )
        for name, row in loop["loop"].items()
        if name != "bare"
    ]
    all_in = [
        (name, f"{row['median_us']:,.1f}", "{:,.1f} to {:,.1f}".format(*row["quartiles_us"]))
        for name, row in told["all_in"].items()
    ]
    longest = [
        (name, f"{row['median_ms']:g}", f"{row['worst_ms']:g}")
        for name, row in told["longest_step_while_512_spans_go"].items()
    ]
    pieces = [(name, f"{value:,.3f}".rstrip("0").rstrip(".")) for name, value in told["pieces"].items()]
    absent = "".join(f"- {name}: absent, {why}\n" for name, why in (loop["absent"] | told["absent"]).items())
    kept = loop["memory"]
    memory = "" if kept is None else (
        f"Over {kept['steps']:,} steps of a real loop the process's resident memory went from"
        f" {kept['resident_mib'][0]:g} MiB, after the first tenth of them, to {kept['resident_mib'][-1]:g} MiB. "
    )  # fmt: skip
    if told["memory"] is not None:
        kept = told["memory"]
        memory += (
            f"Over {kept['steps']:,} records through a run's books and its pipeline under a stand-in clock it went from"
            f" {kept['resident_mib'][0]:g} MiB to {kept['resident_mib'][-1]:g} MiB.\n"
        )
    return f"""# The price of a step, measured

Made by `docs/generate.py` from the newest results of `benchmarks/overhead.py` and `benchmarks/telemetry.py`; run those
with `-o`, then `python docs/generate.py`. [What is paid, and why so](../explanation/price.md) is another page.

- {origin(loop_name, loop)}
- {origin(told_name, told)}

## Added to a step

The same loop, bound by its host (four small layers, SGD, {loop["loop"]["bare"]["main_us"]:,.0f} µs a
step), in a process for each tool, in turns of some 150 ms. In µs of CPU time a step, medians of
{loop["loop"]["bare"]["rounds"]} rounds: the thread that trains beyond the bare loop in the same round, and its
quartiles; the same in a turn's first tenth, when the caches hold what a dozen other processes left there; all other
threads, and delivery; main thread and those together. A load above the number of cores means that others were at
work: all times are longer then, and what is compared is what was measured in the same turns.

{table(("watched by", "main thread", "quartiles", "cold", "elsewhere", "process"), added)}
{absent}
{bounds(loop, table)}
## Telling of a step

From the record to the collector's answer, in µs of the process's CPU time a step, medians of rounds of 1,000 steps. All
spans have the attributes of an `mfu.step`.

{table(("told by", "all in", "quartiles"), all_in)}
The longest of the steps of a loop that lets go of the interpreter's lock forty times a step, while 512 spans are
encoded and sent, in ms: the median of several times, and the worst.

{table(("sent by", "median", "worst"), longest)}
Pieces, the least of several times; those in ms are done without letting a step that waits have the lock.

{table(("piece", "time or size"), pieces)}
{bounds(told, table)}
## Memory

{memory}"""
