"""What a device could do on paper: units × FLOPs a clock and unit × clock, dense, with the source of each factor.

Units (SMs, CUs) and the highest clock come from the device, never from its name; a MIG slice counts its own. The rest
is what its vendor has published (`published`). A rate that cannot be told is absent, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mfu_sdk.peak.published import ARCHITECTURES, FP32_ACCUMULATED, PRODUCTS, TENSOR, Architecture, Product
from mfu_sdk.records import Rate

REMEDY = "run `mfu calibrate` to measure this device"

# NVML's words for the product lines of which the vendor says as a whole that what accumulates in fp32 runs at half of
# the chip's rate (GeForce), or at all of it. Data-centre cards ("NVIDIA", "Tesla") do either.
_GEFORCE = frozenset({"GeForce", "GeForce RTX"})
_WORKSTATION = frozenset({"Quadro", "Quadro RTX", "NVIDIA RTX"})
_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Silicon:
    """What a device says of itself. `architecture` is "sm_90" or "gfx942"; `units` are its SMs or CUs, a slice's own.

    `max_clock_mhz` is the highest clock of the units; `product` the PCI vendor and device id ("10de:2330") and `brand`
    the driver's word for the product line ("GeForce", "NVIDIA RTX", "NVIDIA"). `sliced` is true of a MIG device.
    """

    architecture: str
    units: int
    max_clock_mhz: int | None = None
    product: str | None = None
    brand: str | None = None
    sliced: bool = False


@dataclass(frozen=True, slots=True)
class Theory:
    """Dense FLOP/s by dtype: at the vendor's reference clock, and at the highest clock that the driver allows.

    `missing` says why this device has fewer rates than its architecture, and the remedy; None where it has them all.
    """

    reference: Mapping[str, Rate]
    at_max_clock: Mapping[str, Rate]
    missing: str | None = None

    @property
    def headline(self) -> Mapping[str, Rate]:
        """The denominators of published MFU: at the reference clock, else at the highest one, and named so."""
        return {**self.at_max_clock, **self.reference}


def theoretical(silicon: Silicon) -> Theory:
    """The peaks of `silicon`. An architecture that is not in the table has none, never another one's."""
    architecture = ARCHITECTURES.get(silicon.architecture)
    if architecture is None:
        return Theory({}, {}, f"no published rates are known for architecture {silicon.architecture}; {REMEDY}")
    if silicon.units < 1:
        return Theory({}, {}, f"the device reports {silicon.units} {architecture.unit}s; {REMEDY}")
    if architecture.unit == "CU":
        return _from_engine_clock(silicon, architecture)
    if silicon.product is None:
        # An H20 reports the same architecture as an H100, and a sixth of its rate.
        return Theory({}, {}, f"NVML does not tell which product this {silicon.architecture} is; {REMEDY}")
    product = PRODUCTS.get(silicon.product)
    if product is not None and product.published:
        return _published(silicon, product)
    rates, why = _product_rates(silicon, architecture, product)
    reference: dict[str, Rate] = {}
    at_max: dict[str, Rate] = {}
    for dtype, flops_per_clock in rates.items():
        if product is not None and (mhz := _reference_mhz(product, dtype)) is not None:
            reference[dtype] = _rate(silicon, architecture, flops_per_clock, mhz, f"reference clock, {product.source}")
        if silicon.max_clock_mhz:
            known = "" if dtype in reference else f"; no reference clock is known for {silicon.product}"
            at_max[dtype] = _rate(
                silicon, architecture, flops_per_clock, silicon.max_clock_mhz, f"NVML maximum clock{known}"
            )
    if rates and not reference and not at_max:
        why = f"neither a reference clock of {silicon.product} nor NVML's maximum is known"
    return Theory(reference, at_max, None if why is None else f"{why}; {REMEDY}")


def _from_engine_clock(silicon: Silicon, architecture: Architecture) -> Theory:
    """AMD rates its accelerators at the peak engine clock, and that is what the runtime reads from the device."""
    if not silicon.max_clock_mhz:
        return Theory({}, {}, f"the engine clock of this {silicon.architecture} is not known; {REMEDY}")
    rates = {
        dtype: _rate(silicon, architecture, flops, silicon.max_clock_mhz, f"peak engine clock, {architecture.source}")
        for dtype, flops in architecture.flops_per_clock.items()
    }
    return Theory(rates, rates)


def _product_rates(
    silicon: Silicon, architecture: Architecture, product: Product | None
) -> tuple[dict[str, int], str | None]:
    """FLOPs a clock and SM by dtype as this product has them, and why some are missing."""
    halved, withheld, why = _NONE, _NONE, None
    if product is not None:
        halved, withheld = product.halved, product.withheld
        if withheld:
            why = f"a {product.name} is cut below its chip in {', '.join(sorted(withheld))}, and no source says how far"
    elif architecture.full_rate == "by brand" and silicon.brand in _GEFORCE:
        halved = FP32_ACCUMULATED
    elif architecture.full_rate == "if listed" or (
        architecture.full_rate == "by brand" and silicon.brand not in _WORKSTATION
    ):
        withheld = TENSOR
        why = (
            f"{silicon.architecture} products run their tensor cores at the full rate, at half of it or not at all, "
            f"and neither {silicon.product} nor its brand ({silicon.brand or 'unknown'}) tells which"
        )
    return {
        dtype: flops // (2 if dtype in halved else 1)
        for dtype, flops in architecture.flops_per_clock.items()
        if dtype not in withheld
    }, why


def _published(silicon: Silicon, product: Product) -> Theory:
    """A cap that follows no clock: of the published figure, the device's share of the product's SMs."""
    share, of = 1.0, ""
    if product.units is not None:
        share, of = silicon.units / product.units, f", {silicon.units} of {product.units} SM"
    elif silicon.sliced:
        return Theory({}, {}, f"what share of a {product.name} this slice is cannot be told; {REMEDY}")
    return Theory(
        {
            dtype: _exact(value * share, f"theory: {value / 1e12:g} TFLOP/s{of} ({product.name}, {product.source})")
            for dtype, value in product.published.items()
        },
        {},
    )


def _reference_mhz(product: Product, dtype: str) -> int | None:
    return product.tensor_mhz if dtype in TENSOR else product.vector_mhz


def _rate(silicon: Silicon, architecture: Architecture, flops_per_clock: int, mhz: int, clock: str) -> Rate:
    return _exact(
        float(silicon.units * flops_per_clock * mhz * 10**6),
        f"theory: {silicon.units} {architecture.unit} × {flops_per_clock} FLOP/clock × {mhz} MHz ({clock})",
    )


def _exact(flops_per_s: float, source: str) -> Rate:
    return Rate(flops_per_s, flops_per_s, flops_per_s, source=source, age_s=0.0)
