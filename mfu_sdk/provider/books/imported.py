"""Allocations that were taken from a scheduler, and the YAML that `--inventory` reads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.books.prices import CONTRACTS


@dataclass(frozen=True, slots=True)
class Row:
    """One allocation as the scheduler tells it: what it calls the tenant, and no contract. Times in ISO 8601, UTC."""

    tenant: str
    workload: str | None
    allocation_id: str
    host: str
    gpus: int
    profile: str | None
    since: str
    until: str | None


@dataclass(frozen=True, slots=True)
class Imported:
    """Rows, and a line for each allocation that has to be written by hand."""

    rows: tuple[Row, ...]
    left_out: tuple[str, ...]


def to_yaml(found: Imported, contracts: Iterable[str], tenants: Iterable[str]) -> str:
    """The table `allocations`. `tenants` are `THEIRS=OURS`; `contracts` are `TENANT=CONTRACT`, or one for all others.

    Raises `ConfigurationError` for anything else, and for a contract that there is not.
    """
    renamed = _tenants(tenants)
    others, contract_of = _contracts(contracts)
    rows = []
    for row in found.rows:
        tenant = renamed.get(row.tenant, row.tenant)
        cells: dict[str, Any] = {
            "tenant": tenant,
            "workload": row.workload,
            "allocation_id": row.allocation_id,
            "host": row.host,
            "gpus": row.gpus,
            "profile": row.profile,
            "contract": contract_of.get(tenant, others),
            "from": row.since,
            "until": row.until,
        }
        rows.append({key: value for key, value in cells.items() if value is not None})
    return str(yaml.safe_dump({"allocations": rows}, sort_keys=False, allow_unicode=True, width=120))


def stamp(moment: datetime) -> str:
    """A moment in UTC as the books write it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _tenants(given: Iterable[str]) -> Mapping[str, str]:
    found = {}
    for text in given:
        theirs, equals, ours = text.partition("=")
        if not theirs or not equals or not ours:
            raise ConfigurationError(f"--tenant={text!r}: must be THEIRS=OURS, such as research=acme")
        found[theirs] = ours
    return found


def _contracts(given: Iterable[str]) -> tuple[str, Mapping[str, str]]:
    others, found = CONTRACTS[0], {}
    for text in given:
        tenant, equals, contract = text.rpartition("=")
        if contract not in CONTRACTS:
            raise ConfigurationError(f"contract={contract!r}: must be one of {', '.join(CONTRACTS)}")
        if equals:
            found[tenant] = contract
        else:
            others = contract
    return others, found
