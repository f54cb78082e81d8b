"""Who bears each loss, by contract: the one whose money it is while the contract stands.

| hours | on_demand | reserved | per_token |
| --- | --- | --- | --- |
| down, unsold, between MIG slices | provider: nobody pays for them | provider | provider |
| held, however they are used | tenant, on its bill | tenant, until it renews | provider: fewer tokens to sell |

What a tenant bears by the hour is the provider's too in the end: as tenants that leave, or as room to sell again.
"""

from dataclasses import dataclass
from fractions import Fraction

from mfu_sdk.provider.economics.cents import apportioned
from mfu_sdk.provider.economics.inputs import Ledger
from mfu_sdk.provider.economics.waterfall import STAGES, Waterfall

_BEARERS = {"on_demand": "tenant", "reserved": "tenant until renewal", "per_token": "provider", None: "provider"}


@dataclass(frozen=True, slots=True)
class Incidence:
    """The hours of one stage under one contract: what they cost the provider, what tenants were billed for them.

    `contract` is None for hours that nobody pays for. `billed` is None without a price, and for `per_token`.
    """

    contract: str | None
    stage: str
    gpu_hours: float
    cost: float
    billed: float | None
    borne_by: str


def incidence(ledger: Ledger, found: Waterfall) -> tuple[Incidence, ...]:
    """Every contract's stages in the waterfall's order; the costs add up to that of all owned hours."""
    ns: dict[tuple[str | None, str], int] = {}
    cost: dict[tuple[str | None, str], Fraction] = {}
    billed: dict[tuple[str | None, str], Fraction | None] = {}
    for cell in found.cells:
        key = (cell.contract, cell.stage)
        ns[key] = ns.get(key, 0) + cell.gpu_ns
        cost[key] = cost.get(key, Fraction(0)) + (cell.cost or Fraction(0))
        held = None if cell.held is None else ledger.held[cell.held]
        bill = None if held is None or held.bill is None else held.bill * cell.gpu_ns / held.gpu_ns
        so_far = billed.get(key, Fraction(0))
        billed[key] = None if so_far is None or bill is None else so_far + bill
    contracts = ("on_demand", "reserved", "per_token", None)
    keys = [(contract, stage) for contract in contracts for stage in STAGES if (contract, stage) in ns]
    in_cents = apportioned([cost[key] for key in keys])
    rows = []
    for key, cents in zip(keys, in_cents, strict=True):
        bill = billed[key]
        borne = _BEARERS[key[0]]
        rows.append(Incidence(*key, ns[key] / 3.6e12, cents / 100, None if bill is None else float(bill), borne))
    return tuple(rows)
