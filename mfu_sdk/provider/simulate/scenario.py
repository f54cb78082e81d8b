"""What to inject: a faults file, read and checked, or the built-in mix."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.simulate.faults import KINDS

Range = tuple[float, float]

SEVERITIES: Final[Mapping[tuple[str, str], Range]] = {
    # A service keeps room for the day's peak and for bursts; where half of the replicas could go and that room would
    # still be there, the batch is below a third.
    ("under_batched_inference", ""): (0.70, 0.97),
    ("poor_topology", ""): (0.0, 0.5),
    ("poor_topology", "nic_downgraded"): (0.2, 0.9),
    ("scaling_inefficiency", ""): (0.2, 1.0),
    ("mig_fragmentation", ""): (0.2, 0.9),
    ("configuration_drift", "batch"): (0.4, 0.94),
    ("configuration_drift", "dtype"): (0.2, 1.0),
    ("configuration_drift", "attention"): (0.3, 1.0),
    ("configuration_drift", "library"): (0.03, 0.4),
    ("configuration_drift", "checkpointing"): (0.2, 1.0),
    ("input_bound", ""): (0.4, 0.92),
    ("thermal_or_power", ""): (0.4, 0.85),
    ("thermal_or_power", "power_cap"): (0.1, 0.6),
    ("straggler", ""): (0.02, 0.6),
    ("idle_allocation", ""): (0.25, 1.0),
    ("accounting", ""): (0.02, 1.0),
}
"""From where severity is drawn unless the file says: from what costs nothing to what costs most."""

HARD_NEGATIVES: Final[Mapping[str, str]] = {
    "kv_bound": "long contexts fill the cache with a small batch",
    "latency_bound": "a small batch keeps a promised time per token",
    "prefill_heavy": "long prompts, short answers",
    "memory_bound": "decode at its full batch, and low MFU by nature",
    "small_messages": "small collectives that nothing hides, on the best links",
    "congestion": "minutes of a congested network",
    "shared_cap": "a power limit that all GPUs of a type share",
    "right_sized_mig": "a GPU cut into slices that are all in use",
    "placeable_mig": "free slices that whatever waits would fit",
    "batch_change": "a service whose demand changed as planned",
    "small_model": "a small model that memory bounds",
    "changed_intent": "another model under the same name",
    "warm_up": "a cold cache in the first minutes",
}

MISSING: Final[Mapping[str, tuple[float, str]]] = {
    "no_links": (0.07, "tell nothing of links"),
    "no_load": (0.05, "tell nothing of their servers' load"),
    "no_clock": (0.06, "tell nothing of clocks"),
    "old_sdk": (0.07, "tell sums of time, FLOPs and tokens only"),
    "dcgm_only": (0.05, "run no SDK on machines with the provider's exporter"),
    "nothing": (0.05, "run no SDK on machines without one"),
}
"""Shares of tenants, and what they do."""


@dataclass(frozen=True, slots=True)
class Asked:
    """`count` workloads with a fault; ranges are drawn from. None: the variant, onset and end are drawn or defaults."""

    kind: str
    variant: str | None = None
    count: int = 1
    severity: Range | None = None
    onset_h: Range | None = None
    duration_h: Range | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a fleet has in it. `fill`: as many of the faults as fit, where False means all of them or an error.

    `fit_faults` bounds the share of the GPUs that they take then. `largest` is the most GPUs of a healthy workload.
    """

    faults: tuple[Asked, ...]
    hard_negatives: Mapping[str, int]
    missing: Mapping[str, float]
    fill: bool = False
    fit_faults: float = 0.4
    largest: int = 32


def built_in(gpus: int) -> Scenario:
    """The mix without a file: each kind and variant in turn until two fifths of the GPUs are taken, then the rest."""
    once = [Asked(kind, variant) for kind, found in KINDS.items() for variant in found.variants]
    # Kinds take turns, so that a small fleet has many of them.
    turns = sorted(once, key=lambda asked: KINDS[asked.kind].variants.index(asked.variant or ""))
    times = max(1, gpus // 400)
    return Scenario(
        tuple(turns * times),
        dict.fromkeys(HARD_NEGATIVES, times),
        {name: share for name, (share, _) in MISSING.items()},
        fill=True,
    )


def load(path: Path) -> Scenario:
    """The scenario of a faults file. Raises `ConfigurationError`."""
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); give a YAML file with faults") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: no YAML ({' '.join(str(error).split())[:150]}); see {_DOCS}") from error
    return parse(found, str(path))


def parse(found: Any, where: str) -> Scenario:
    """The scenario of a file's content; `where` begins each message. Raises `ConfigurationError`."""
    top = _keys(found, where, {"faults", "hard_negatives", "missing"}, {"faults"})
    if not isinstance(top["faults"], list):
        raise ConfigurationError(f"{where}: faults must be a list, is {top['faults']!r}; see {_DOCS}")
    return Scenario(
        tuple(_asked(each, f"{where}: faults[{number}]") for number, each in enumerate(top["faults"])),
        _negatives(top.get("hard_negatives"), f"{where}: hard_negatives"),
        _missing(top.get("missing"), f"{where}: missing"),
    )


_DOCS: Final = "docs/how-to/simulate.md"


def _asked(found: Any, where: str) -> Asked:
    keys = _keys(found, where, {"kind", "variant", "count", "severity", "onset_h", "duration_h"}, {"kind"})
    kind = keys["kind"]
    if kind not in KINDS:
        raise ConfigurationError(f"{where}: kind {kind!r} is unknown; must be one of {', '.join(KINDS)}")
    variant = keys.get("variant")
    if variant is not None and variant not in KINDS[kind].variants:
        raise ConfigurationError(
            f"{where}: variant {variant!r} is unknown; {kind} has {', '.join(KINDS[kind].variants)}"
        )
    count = keys.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigurationError(f"{where}: count {count!r}: must be a whole number of at least 1; leave it out for 1")
    if variant == "abandoned" and keys.get("severity") is not None:
        raise ConfigurationError(f"{where}: an abandoned allocation is idle as a whole; leave severity out")
    return Asked(
        kind,
        variant,
        count,
        _range(keys.get("severity"), f"{where}: severity", 0.0, 1.0),
        _range(keys.get("onset_h"), f"{where}: onset_h", 0.0, 24 * 366.0),
        _range(keys.get("duration_h"), f"{where}: duration_h", 0.01, 24 * 366.0),
    )


def _negatives(found: Any, where: str) -> dict[str, int]:
    if found is None:
        return dict.fromkeys(HARD_NEGATIVES, 1)
    keys = _keys(found, where, set(HARD_NEGATIVES), set())
    for name, count in keys.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ConfigurationError(f"{where}: {name} {count!r}: must be a whole number; 0 for none")
    return keys


def _missing(found: Any, where: str) -> dict[str, float]:
    if found is None:
        return {name: share for name, (share, _) in MISSING.items()}
    keys = _keys(found, where, set(MISSING), set())
    shares = {name: _number(share, f"{where}: {name}", 0.0, 1.0) for name, share in keys.items()}
    if sum(shares.values()) > 1:
        raise ConfigurationError(
            f"{where}: {sum(shares.values()):g}: shares of tenants must add up to 1 at most; lower them"
        )
    return shares


def _keys(found: Any, where: str, known: set[str], needed: set[str]) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ConfigurationError(f"{where}: must be a mapping, is {found!r}; see {_DOCS}")
    for name in found:
        if name not in known:
            raise ConfigurationError(f"{where}: {name!r} is unknown; must be one of {', '.join(sorted(known))}")
    for name in sorted(needed - set(found)):
        raise ConfigurationError(f"{where}: has no {name}; see {_DOCS}")
    return found


def _range(found: Any, where: str, least: float, most: float) -> Range | None:
    if found is None:
        return None
    if isinstance(found, list):
        if len(found) != 2:
            raise ConfigurationError(f"{where} {found!r}: must be one number or two, [lowest, highest]")
        low, high = (_number(each, where, least, most) for each in found)
        if low > high:
            raise ConfigurationError(f"{where} {found!r}: the lowest comes first; swap them")
        return low, high
    value = _number(found, where, least, most)
    return value, value


def _number(found: Any, where: str, least: float, most: float) -> float:
    if not isinstance(found, int | float) or isinstance(found, bool) or not least <= found <= most:
        raise ConfigurationError(f"{where} {found!r}: must be a number from {least:g} to {most:g}")
    return float(found)
