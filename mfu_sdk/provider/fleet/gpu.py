"""A GPU as the provider's own counters saw it, and what that says of its MFU where its tenant runs no SDK.

The estimate is the paper's OFU (arXiv 2605.20799): the share of cycles in which a tensor pipe was busy × SM clock /
reference clock, the clock that the peak on paper assumes. The paper has it within 2 percentage points of MFU on plain
products once tiles are accounted for, and correlated at r = 0.78 over 608 training jobs, so 1 − 0.78² = 39 % of the
variance of a real job's MFU is not explained by it. It says how busy the pipes were, not how much of that was asked
for: padding and recomputation are in it, so that of work on the pipes it is an upper bound by its nature, and work off
them (fp32, elementwise) is not in it at all. It is a share of the peak of the dtype that ran; as FLOPs it is priced at
the dense bf16 reference peak. It is never mixed into an `mfu`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.peak import catalogue
from mfu_sdk.peak.published import PRODUCTS
from mfu_sdk.peak.theory import theoretical
from mfu_sdk.provider.rollup import ratio

ESTIMATE_ERROR: Final = (
    "tensor activity × clock / reference clock: within 2 points of MFU on plain products, r = 0.78 over 608 jobs"
    " (arXiv 2605.20799); padding and recomputation are in it, work off the tensor pipes is not"
)
"""What stands behind every `estimated_*`, for the report."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """Sums over a range for one GPU, or for one MIG slice of it with `share` of its SMs; None where nothing was told.

    `x_s` are seconds in which x is known, `x_weighted` is Σ share of time × seconds; the `held` ones are over the part
    that somebody held. `untold` is over hours in which the GPU sent no steps of its own, `busy` over five minutes in
    which a kernel ran for at least 90 % of the time. `share` is None for a profile that nobody knows.
    """

    host: str
    gpu: str
    gpu_type: str | None
    share: float | None
    first_unix_ns: int
    seconds: float
    held_s: float
    util_weighted: float
    util_s: float
    util_held_weighted: float
    util_held_s: float
    engine_weighted: float
    engine_s: float
    engine_held_weighted: float
    engine_held_s: float
    tensor_weighted: float
    tensor_s: float
    tensor_held_weighted: float
    tensor_held_s: float
    untold_mhz_s: float
    untold_s: float
    busy_mhz_s: float
    busy_s: float
    power_j: float
    power_s: float
    xid_samples: int
    double_samples: int
    single_samples: int

    @property
    def busy_mhz(self) -> float | None:
        """The mean SM clock while kernels ran."""
        return ratio(self.busy_mhz_s, self.busy_s)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a GPU type's peak on paper stands on: FLOP/s of dense bf16 (fp16 where it has none), at a clock in MHz."""

    flops_per_s: float
    mhz: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """FLOPs that the pipes could have done while they were busy, of those that were available; GPU-hours of both."""

    flops: float = 0.0
    available_flops: float = 0.0
    gpu_hours: float = 0.0
    gpus: int = 0

    @property
    def mfu(self) -> float | None:
        """The estimated MFU; None over no hours."""
        return ratio(self.flops, self.available_flops)


@cache
def reference(gpu_type: str | None) -> Reference | None:
    """The peak and clock of a GPU type by its driver's name; None where its maker's figures follow no clock."""
    # A name without a number, such as "H" or "GPU", would match whatever holds it.
    if gpu_type is None or not re.search(r"[A-Za-z]\d", gpu_type):
        return None
    try:
        silicon = catalogue.find(gpu_type)[0].silicon
    except ConfigurationError:
        return None
    product = PRODUCTS.get(silicon.product or "")
    rates = theoretical(silicon).headline
    rate = rates.get("bfloat16") or rates.get("float16")
    if product is None or product.published or not product.tensor_mhz or rate is None:
        return None
    return Reference(rate.flops_per_s, float(product.tensor_mhz))


def estimate(gpus: Iterable[Gpu]) -> Estimate:
    """What `gpus` did in hours of which they sent no steps; those without a reference or a known share are left out."""
    flops = available = hours = 0.0
    seen = set()
    for each in gpus:
        known = reference(each.gpu_type)
        if known is None or each.share is None or not each.untold_s:
            continue
        flops += known.flops_per_s * each.share * each.untold_mhz_s / known.mhz
        available += known.flops_per_s * each.share * each.untold_s
        hours += each.share * each.untold_s / 3600
        seen.add(each.gpu)
    return Estimate(flops, available, hours, len(seen))
