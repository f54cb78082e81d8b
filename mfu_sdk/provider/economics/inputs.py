"""What the economics reckon with: hours that are owned and held, with what they cost and bring, and what ran in them.

Time is in GPU-nanoseconds, whole numbers, so that parts add up to their whole exactly: a MIG slice's nanosecond counts
by the slice's share of the SMs. Money is exact fractions of the currency until it is printed.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from math import inf
from typing import Final, Literal

HOUR_NS: Final = 3600 * 10**9
PFLOP_HOUR: Final = 3.6e18
"""FLOPs of one PFLOP/s for one hour."""

Trust = Literal["witnessed", "consistent", "claimed", "contradicted"]
"""What stands behind a row: the provider's own counters; that it contradicts nothing the provider knows; its word
alone, which does not fit the provider's records of who held what; nothing, for its figures cannot be right together,
or its GPU was somebody else's."""
TRUSTED: Final[frozenset[Trust]] = frozenset({"witnessed", "consistent"})
"""What advice on prices and purchases, and what others are held against, may rest on."""


@dataclass(frozen=True, slots=True)
class Owned:
    """The GPUs of one type in one host over the window; `unsold_ns` is available, in no slice lost, and held by nobody.

    The costs are those of the hours beside them; None where the cost book has no row for some of them.
    """

    host: str
    gpu_type: str
    gpus: int
    owned_ns: int
    unavailable_ns: int
    stranded_ns: int
    unsold_ns: int
    cost: Fraction | None
    unavailable_cost: Fraction | None
    stranded_cost: Fraction | None
    unsold_cost: Fraction | None


@dataclass(frozen=True, slots=True)
class Held:
    """What one allocation holds on one host over the window, downtime left out.

    `gpus` are devices, slices counted as devices. `bill` is what its hours are billed at, None without a price row;
    for `per_token` it is None and `per_million_tokens` is the price, meaned over the time held. `list_value` is the
    hours at list price, `commitment_hours` what a reservation commits its tenant to, of one GPU. `contract` is None
    where steps were seen that no allocation covers.
    """

    tenant: str
    workload: str | None
    allocation_id: str | None
    host: str
    gpu_type: str
    contract: str | None
    gpus: int
    gpu_ns: int
    cost: Fraction | None
    bill: Fraction | None
    per_million_tokens: Fraction | None
    list_value: Fraction | None
    commitment_hours: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """What findings claim of a workload's step time, as shares of it: overlapping claims are cut by the waterfall.

    `topology` is the part of the exposed communication that a better placement would save.
    """

    topology: float = 0.0
    under_batch: float = 0.0
    clock: float = 0.0
    drift: float = 0.0


@dataclass(frozen=True, slots=True)
class Used:
    """What one device did for one workload under the allocation at `held`, an index into the ledger's.

    `device_s` are seconds of steps whose FLOPs are known, `unknown_s` of the others. `peak_flops_per_s` is that of the
    whole GPU, `sm_share` the device's part of it; expected MFUs are over that peak. The components are seconds of
    `device_s`, `lost_s` those of steps that a later attempt did again; None where unknown. `claims` are the places of
    the claims that are about the row. `weight` is below 1 where it is part of one that several allocations may be
    meant by.
    """

    held: int
    tenant: str
    workload: str | None
    phase: str | None
    device: str
    host: str
    gpu_type: str
    sm_share: Fraction
    device_s: float
    unknown_s: float
    model_flops: float
    peak_flops_per_s: float
    expected_mfu: float | None = None
    expected_low: float | None = None
    expected_high: float | None = None
    data_s: float | None = None
    comm_s: float | None = None
    skew_s: float | None = None
    host_s: float | None = None
    lost_s: float | None = None
    tokens: float | None = None
    tokens_good: float | None = None
    intent: str | None = None
    trust: Trust = "claimed"
    losses: Losses = field(default=Losses())
    claims: tuple[int, ...] = ()
    weight: float = 1.0

    @property
    def reachable(self) -> tuple[float, float, float] | None:
        """The least, the expected and the most MFU that it could reach; thrice the same where no interval was told.

        None without an expectation, and where that is no number above 0.
        """
        mid = self.expected_mfu
        if mid is None or not 0 < mid < inf:
            return None
        low, high = self.expected_low, self.expected_high
        if low is None or high is None or not 0 < low <= mid <= high < inf:
            return mid, mid, mid
        return low, mid, high

    @property
    def has_interval(self) -> bool:
        """Whether its expectation came with an interval."""
        return self.reachable is not None and self.expected_low is not None and self.expected_high is not None


@dataclass(frozen=True, slots=True)
class Ledger:
    """All hours of the window: those that are owned by host, those that are held by allocation."""

    since_unix_ns: int
    until_unix_ns: int
    owned: tuple[Owned, ...]
    held: tuple[Held, ...]
