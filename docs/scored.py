"""The page of how right named causes are, made of the newest result of benchmarks/causes.py."""

from typing import Any

from measured import Table, newest, origin


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _of(found: int, of: int, share: float | None) -> str:
    return f"{_share(share)} ({found} of {of})"


def _targets(result: dict[str, Any]) -> str:
    missed = [name for name, met in result["targets_met"].items() if not met]
    return f"Not met: {', '.join(missed)}." if missed else "All are met."


def _exported(result: dict[str, Any]) -> str:
    variants = ", ".join(f"`{each}`" for each in result.get("told_by_an_exporter", ()))
    also = f", and these by what crosses PCIe: {variants}" if variants else ""
    return f"\nWhere the provider's exporter runs it tells clocks{also}.\n"


def causes(table: Table) -> str:
    """The page; `table` writes a table as the other pages have it."""
    name, result = newest("causes")
    rows = [
        (
            f"`{cause}`",
            _share(row["precision"]),
            _of(row["found"], row["material"], row["recall"]),
            _of(row["found_told"], row["told"], row["recall_told"]),
            _share(row["money_recall"]),
            "–" if row["median_delay_h"] is None else f"{row['median_delay_h']:.1f}",
        )
        for cause, row in result["causes"].items()
    ]
    fleets = result["fleets"]
    healthy = sum(each["healthy"] for each in fleets)
    accused = sum(len(each["accused"]) for each in fleets)
    seeds = ", ".join(str(each["seed"]) for each in fleets)
    missed = [(cause, why, str(count)) for key, count in result["missed"].items() for cause, why in [key.split(": ")]]
    needs = [(f"`{cause}`", ", ".join(needed)) for cause, needed in result["told"].items()]
    return f"""# Named causes, scored

Made by `docs/generate.py` from the newest result of `benchmarks/causes.py`; run that with `-o`, then
`python docs/generate.py`. [What the rules are](../explanation/causes.md) is another page.

- {origin(name, result)}
- Fleets of seeds {seeds}: {sum(each["gpus"] for each in fleets):,} GPUs, {sum(each["workloads"] for each in fleets):,}
  workloads, {sum(each["faults"] for each in fleets):,} faults. Rules were written on other seeds, but
  one after what 104 to 106 had missed was seen (`benchmarks/causes.py`).
- {healthy:,} workloads are healthy; accused of something: {accused}.
- Targets: a precision of 0.95 and a recall of 0.85 for each cause, and nobody accused who is well. {_targets(result)}

{table(("cause", "precision", "recall", "where it is told", "recall by money", "delay, h"), rows)}
A fault is material that costs {result["material"]}. The delay is the median of those that were found,
and findings are asked for every two hours.

## Missed

{table(("cause", "why", "faults"), missed)}
*Signal absent*: its tenant's SDK does not tell what such a fault shows in, nor does the provider's exporter. *Diluted*:
over the judged hours it costs less than what is material. *Small*: it costs less than twice that while it holds.
*Taken for another*: another cause was named. *Not decided*: a rival was not ruled out, or a threshold was not reached.
Each fault is listed in the result.

## What is told

Simulated tenants leave signals out on purpose. These are what a fault shows in and not every SDK tells:

{table(("fault", "signals"), needs)}{_exported(result)}"""
