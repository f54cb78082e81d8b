"""The money as rows of FOCUS, the FinOps Open Cost and Usage Specification, version 1.2 (focus.finops.org).

A row for each allocation on each host, as the provider bills its tenants: BilledCost, ContractedCost and EffectiveCost
are the bill (nothing is paid upfront that would have to be amortized), ListCost is the list price. A row without a
billing account for each host's hours that nobody pays for. What the provider pays, and what the hours did, is in
columns of our own (`x_…`), as the specification wants; x_ProviderCost adds up to the cost of all owned hours.
A billing period is the calendar months that the window touches.
"""

import csv
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from fractions import Fraction
from typing import Final

from mfu_sdk.provider.economics.accounts import revenue_of
from mfu_sdk.provider.economics.cents import apportioned
from mfu_sdk.provider.economics.inputs import HOUR_NS, PFLOP_HOUR, Held, Ledger
from mfu_sdk.provider.economics.waterfall import STAGES, Cell, Split, Waterfall

_STAGE_COLUMNS: Final = {stage: "x_" + "".join(w.title() for w in stage.split("_")) + "GpuHours" for stage in STAGES}
COLUMNS: Final = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
    "CommitmentDiscountCategory", "CommitmentDiscountId", "CommitmentDiscountStatus", "CommitmentDiscountType",
    "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "InvoiceIssuerName",
    "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName",
    "RegionId", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "SkuId", "SkuPriceId",
    "x_Host", "x_GpuType", "x_Contract", "x_ProviderCost", "x_GpuHours", "x_UsefulPflopHours", "x_CommitmentGpuHours",
    *_STAGE_COLUMNS.values(),
)  # fmt: skip
_CATEGORY: Final = {"on_demand": "Standard", "reserved": "Committed", "per_token": "Standard"}
Row = dict[str, str]


def focus_csv(ledger: Ledger, found: Waterfall, currency: str, provider: str | None, regions: Mapping[str, str]) -> str:
    """The rows as CSV; `provider` is the name on the invoice, empty where None; `regions` by host."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(focus_rows(ledger, found, currency, provider, regions))
    return text.getvalue()


def focus_rows(
    ledger: Ledger, found: Waterfall, currency: str, provider: str | None, regions: Mapping[str, str]
) -> list[Row]:
    """One row for each allocation on a host, then one for each host's hours that nobody pays for."""
    cells: dict[tuple[int | None, str, str], list[Cell]] = {}
    for cell in found.cells:
        key = (cell.held, "", "") if cell.held is not None else (None, cell.host, cell.gpu_type)
        cells.setdefault(key, []).append(cell)
    splits: dict[int, list[Split]] = {}
    for one in found.splits:
        splits.setdefault(one.used.held, []).append(one)
    costs = apportioned([sum((c.cost or Fraction(0) for c in members), Fraction(0)) for members in cells.values()])
    rows = []
    for ((index, _, _), members), cost in zip(cells.items(), costs, strict=True):
        held = None if index is None else ledger.held[index]
        row = _common(ledger, members, cost, currency, provider, regions)
        if held is None or held.contract is None or index is None:
            row |= _unpaid(members, held)
        else:
            row |= _paid(held, splits.get(index, []))
        rows.append(row)
    return rows


def _common(
    ledger: Ledger, members: list[Cell], cost: int, currency: str, provider: str | None, regions: Mapping[str, str]
) -> Row:
    since, until = _moment(ledger.since_unix_ns), _moment(ledger.until_unix_ns)
    first = since.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    last = until.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    if last < until:
        last = last.replace(year=last.year + last.month // 12, month=last.month % 12 + 1)
    hours = dict.fromkeys(STAGES, 0)
    for cell in members:
        hours[cell.stage] += cell.gpu_ns
    host, gpu_type = members[0].host, members[0].gpu_type
    name = provider or ""
    return {
        "BillingCurrency": currency,
        "BillingPeriodStart": _iso(first),
        "BillingPeriodEnd": _iso(last),
        "ChargePeriodStart": _iso(since),
        "ChargePeriodEnd": _iso(until),
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "InvoiceIssuerName": name,
        "ProviderName": name,
        "PublisherName": name,
        "RegionId": regions.get(host, ""),
        "ServiceCategory": "Compute",
        "ServiceName": "GPU compute",
        "x_Host": host,
        "x_GpuType": gpu_type,
        "x_ProviderCost": f"{cost / 100:.2f}",
        "x_GpuHours": _number(sum(hours.values()) / HOUR_NS),
    } | {_STAGE_COLUMNS[stage]: _number(ns / HOUR_NS) for stage, ns in hours.items()}


def _unpaid(members: list[Cell], held: Held | None) -> Row:
    stages = ", ".join(stage.replace("_", " ") for stage in dict.fromkeys(cell.stage for cell in members))
    who = f"steps of {held.tenant} that no allocation covers" if held is not None else f"not sold ({stages})"
    hours = _number(sum(cell.gpu_ns for cell in members) / HOUR_NS)
    zero = dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), "0.00")
    return zero | {
        "ChargeDescription": f"{members[0].gpu_type}: {who}",
        "ConsumedQuantity": hours,
        "ConsumedUnit": "GPU-Hours",
        "ResourceId": members[0].host,
        "ResourceType": "GPU node",
    }


def _paid(held: Held, splits: list[Split]) -> Row:
    rows = [one.used for one in splits]
    by_token = held.contract == "per_token"
    bill = revenue_of(held, rows)
    tokens = [row.tokens_good for row in rows if row.tokens_good is not None]
    gpu_hours = held.gpu_ns / HOUR_NS
    quantity: float | None = gpu_hours
    if by_token:
        quantity = sum(tokens) if tokens else None
    priced = None if quantity is None else quantity / 1e6 if by_token else quantity
    unit = held.per_million_tokens if by_token else _per(held.bill, held.gpu_ns)
    flops = sum(one.useful_flops for one in splits)
    amount = "" if bill is None else f"{float(bill):.2f}"
    row = {
        "BilledCost": amount,
        "ContractedCost": amount,
        "EffectiveCost": amount,
        # A price by the token is its own list price: hours are not what it sells.
        "ListCost": amount if by_token else "" if held.list_value is None else f"{float(held.list_value):.2f}",
        "ListUnitPrice": _number(unit if by_token else _per(held.list_value, held.gpu_ns)),
        "ContractedUnitPrice": _number(unit),
        "BillingAccountId": held.tenant,
        "BillingAccountName": held.tenant,
        "ChargeDescription": f"{held.gpu_type}, {held.contract}: {held.workload or held.allocation_id or held.host}",
        "ConsumedQuantity": _number(quantity),
        "ConsumedUnit": "Tokens" if by_token else "GPU-Hours",
        "PricingQuantity": _number(priced),
        "PricingUnit": "1000000 Tokens" if by_token else "GPU-Hours",
        "PricingCategory": _CATEGORY[held.contract or "on_demand"],
        "ResourceId": held.allocation_id or held.host,
        "ResourceName": held.workload or "",
        "ResourceType": "GPU allocation",
        "SkuId": f"{held.gpu_type}/{held.contract}",
        "SkuPriceId": f"{held.gpu_type}/{held.contract}/{held.tenant}",
        "x_Contract": held.contract or "",
        "x_UsefulPflopHours": _number(flops / PFLOP_HOUR),
    }
    if held.contract == "reserved":
        row |= {
            "CommitmentDiscountCategory": "Usage",
            "CommitmentDiscountId": f"{held.tenant}/{held.gpu_type}",
            "CommitmentDiscountStatus": "Used",
            "CommitmentDiscountType": "Reservation",
            "x_CommitmentGpuHours": _number(held.commitment_hours),
        }
    return row


def _per(amount: Fraction | None, gpu_ns: int) -> Fraction | None:
    return None if amount is None else amount * HOUR_NS / gpu_ns


def _number(value: float | Fraction | None) -> str:
    return "" if value is None else f"{float(value):.6f}".rstrip("0").rstrip(".")


def _moment(unix_ns: int) -> datetime:
    return datetime.fromtimestamp(unix_ns // 10**9, UTC)


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
