"""Which rows of use somebody but their tenant stands behind, and which contradict what the provider knows. Pure.

The provider's exporter is the witness of a row where it watched the row's device for at least half as many hours as the
row has of steps, whole hours in which the device did nothing else, and what the workload counted over them agrees with
what the tensor pipes did (`accounting.borne_out`, which has the tolerance). A workload whose figures cannot be right
together (`accounting`: the witness, an MFU above 1, a peak that the device cannot have, more time than has passed,
ranks that count differently) is contradicted, all of it: nobody knows which of its rows are wrong.
"""

from collections.abc import Iterable
from typing import Final, Literal

from mfu_sdk.provider.causes.accounting import accounting, borne_out
from mfu_sdk.provider.causes.evidence import Evidence
from mfu_sdk.provider.causes.gather import Unit, unit_of
from mfu_sdk.provider.rollup import Usage

Word = Literal["witnessed", "contradicted"]

LEAST_WATCHED: Final = 0.5
"""Watched hours of a device over its hours of steps, from which on it is witnessed."""


def testimony(evidence: Iterable[Evidence], usages: Iterable[Usage]) -> dict[tuple[object, ...], Word]:
    """By `Usage.identity` what is known of a row beside its own word; rows of which nothing is are not in it."""
    of_unit: dict[Unit, tuple[Evidence, Word]] = {}
    for e in evidence:
        if (word := _judged(e)) is not None:
            unit = Unit(e.tenant, e.workload, e.family, e.gpu_type, e.world_size, e.intent, e.fingerprint, e.phase)
            of_unit[unit] = e, word
    found: dict[tuple[object, ...], Word] = {}
    for usage in usages:
        known = of_unit.get(unit_of(usage))
        if known is None:
            continue
        e, word = known
        hours = usage.sums.device_hours or 0.0
        if word == "contradicted" or e.watched_devices.get(usage.device, 0.0) >= LEAST_WATCHED * hours > 0:
            found[usage.identity] = word
    return found


def _judged(e: Evidence) -> Word | None:
    if accounting(e) is not None:
        return "contradicted"
    return "witnessed" if borne_out(e) else None
