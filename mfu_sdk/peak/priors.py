"""What GPUs of a type may be expected to reach before one was measured: shares of theory that others have published.

A prior is no measurement of the device that will run the work: its interval is wide, and its source says "prior".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.peak.catalogue import GpuType, Link
from mfu_sdk.peak.theory import theoretical
from mfu_sdk.records import Peaks, Rate

_WIDER: Final = 0.05
"""How much wider than what was published an interval is on either side: devices of one type differ, as do their power
and cooling. Our own choice."""


@dataclass(frozen=True, slots=True)
class Share:
    """The lowest and the highest share of theory that was published for products of large matrices, and by whom."""

    low: float
    high: float
    source: str


_MAMF: Final = "mamf-finder (Stas Bekman, ml-engineering)"
_FRYER: Final = "gpu-fryer (Hugging Face)"
# TFLOP/s as published, over the dense figure of theory. mamf-finder reports the best of many shapes on a cool device,
# gpu-fryer the mean of a minute: together they are the range that a run may find itself in.
_16_BIT: Final[Mapping[str, Share]] = {
    "A100 SXM": Share(258 / 312, 271 / 312, f"258 cuBLAS at 8192³ (thonking.ai), 270 {_FRYER}, 271 {_MAMF}"),
    "A100 PCIe": Share(224 / 312, 253 / 312, f"224 {_FRYER}, 253 {_MAMF}"),
    "H100 SXM": Share(730 / 989.4, 794 / 989.4, f"730 {_FRYER}, 794 {_MAMF}"),
    "B200": Share(1745 / 2250, 1745 / 2250, f"1745 {_MAMF}"),
    "B300": Share(1769 / 2250, 1769 / 2250, f"1769 {_MAMF}"),
    "GB200": Share(1550 / 2500, 1822 / 2500, f"1550 {_FRYER}, 1822 {_MAMF}"),
    "MI300X": Share(668 / 1307.4, 708 / 1307.4, f"668 {_MAMF}, 708 AMD (maximum achievable FLOPS, 2025)"),
    "MI325X": Share(616 / 1307.4, 831 / 1307.4, f"616 and 831 AMD (TAF 2026, MAF 2025), 785 {_MAMF}"),
    "MI355X": Share(1565 / 2516.6, 1565 / 2516.6, f"1565 {_MAMF}"),
}
_8_BIT: Final[Mapping[str, Share]] = {
    "H100 SXM": Share(1403 / 1978.9, 1530 / 1978.9, f"1403 {_MAMF}, 1530 {_FRYER}"),
    "B200": Share(3432 / 4500, 3432 / 4500, f"3432 {_MAMF}"),
    "B300": Share(3353 / 4500, 3353 / 4500, f"3353 {_MAMF}"),
    "GB200": Share(3616 / 5000, 4300 / 5000, f"3616 {_MAMF}, 4300 {_FRYER}"),
    "MI300X": Share(1273 / 2614.9, 1273 / 2614.9, f"1273 {_MAMF}"),
    "MI325X": Share(1143 / 2614.9, 1409 / 2614.9, "1143 and 1409 AMD (TAF 2026, MAF 2025)"),
}
_TF32: Final[Mapping[str, Share]] = {
    "A100 SXM": Share(130 / 156, 130 / 156, f"130 {_FRYER}"),
    "A100 PCIe": Share(106 / 156, 106 / 156, f"106 {_FRYER}"),
    "H100 SXM": Share(373 / 494.7, 373 / 494.7, f"373 {_FRYER}"),
    "GB200": Share(790 / 1250, 790 / 1250, f"790 {_FRYER}"),
}
_TABLES: Final[Mapping[str, Mapping[str, Share]]] = {
    "bfloat16": _16_BIT,
    "float16": _16_BIT,
    "tf32": _TF32,
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"), _8_BIT),
}
# Where nobody has published a type's own: all that was published for its maker's GPUs, in any format.
_NVIDIA: Final = Share(1550 / 2500, 271 / 312, "all published shares of NVIDIA's GPUs, A100 to B300")
_AMD: Final = Share(616 / 1307.4, 831 / 1307.4, "all published shares of AMD's GPUs, MI300X to MI355X")
_MEMORY: Final = Share(
    0.867,
    0.90,
    "2,903 of 3,350 GB/s copied on an H100 (Voltage Park), 4.3 of 4.8 TB/s on an H200",
)
_RING: Final = Share(
    0.6,
    0.85,
    "nccl-tests among 8: 230 to 250 of 300 GB/s on A100, 460 to 480 of 450 on H100 (AlayaNeW, 2026)",
)
_SWITCH_HIGH: Final = 480 / 450
"""What an H100's all-reduce reaches of its link where the switch reduces (NVLink SHARP; nccl-tests, 8 GPUs)."""


@dataclass(frozen=True, slots=True)
class LinkPrior:
    """A link with the bus rate, in bytes/s, that collectives over it may be expected to reach."""

    link: Link
    bus: Rate


def prior_peaks(types: Sequence[GpuType]) -> Peaks:
    """The peaks of any one of `types`, which share a chip: theory as it is, rates as priors that span all of them."""
    first = types[0]
    theory = theoretical(first.silicon)
    # Types that share a chip share the first word of their names.
    name = first.name if len(types) == 1 else first.name.partition(" ")[0]
    if not theory.headline:
        raise ConfigurationError(f"device={name!r}: no rate is published for it ({theory.missing}); give its Peaks")
    achievable = {dtype: _achievable(types, dtype, rate) for dtype, rate in theory.headline.items()}
    slow, fast = (pick(each.memory_bytes_per_s for each in types) for pick in (min, max))
    sources = ", ".join(dict.fromkeys(each.source for each in types))
    memory = _within(slow, fast, _MEMORY, f"of {slow / 1e9:,.0f}" + (f" to {fast / 1e9:,.0f}" if fast > slow else "")
                     + f" GB/s ({sources})")  # fmt: skip
    among = {} if len(types) == 1 else {"among": ", ".join(each.name for each in types)}
    return Peaks(name, theory.headline, achievable, memory, None, {"name": name, **among})


def link_prior(link: Link) -> LinkPrior:
    """What collectives may be expected to reach over `link`."""
    rate = link.bytes_per_s
    high = _SWITCH_HIGH if link.name.startswith("NVLink 4") or link.name.startswith("NVLink 5") else 1.0
    middle = (_RING.low + _RING.high) / 2
    source = (
        f"prior: {_RING.low:.0%} to {high:.0%} of {rate / 1e9:,.0f} GB/s, {link.name} ({link.source}; {_RING.source})"
    )
    return LinkPrior(link, Rate(rate * middle, rate * _RING.low, rate * high, source, 0.0))


def _achievable(types: Sequence[GpuType], dtype: str, theory: Rate) -> Rate:
    shares = [_share(each, dtype) for each in types]
    span = Share(
        min(share.low for share in shares),
        max(share.high for share in shares),
        "; ".join(dict.fromkeys(share.source for share in shares)),
    )
    return _within(theory.flops_per_s, theory.flops_per_s, span, f"of {theory.source.removeprefix('theory: ')}")


def _share(each: GpuType, dtype: str) -> Share:
    table = _TABLES.get(dtype, {})
    # An H200 has an H100's chip and memory of its own; 40 and 80 GB are one card.
    name = {"H200": "H100 SXM", "GH200": "H100 SXM", "H800": "H100 SXM", "A800": "A100 SXM"}.get(
        each.name.partition(" ")[0], each.name
    )
    if each.link.name.startswith("PCIe") and name.startswith("H100"):
        name = each.name
    found = next((share for known, share in table.items() if name == known or name.startswith(f"{known} ")), None)
    return found or (_NVIDIA if each.silicon.architecture.startswith("sm_") else _AMD)


def _within(slow: float, fast: float, share: Share, of: str) -> Rate:
    middle = (slow * share.low + fast * share.high) / 2
    low = slow * share.low * (1 - _WIDER)
    high = min(fast, fast * share.high * (1 + _WIDER))
    shares = f"{share.low:.1%}" + (f" to {share.high:.1%}" if share.high > share.low else "")
    return Rate(middle, low, high, f"prior: {shares} {of}; {share.source}", 0.0)
