"""Round prices and costs for the simulated books. They are nobody's: a provider has its own."""

CURRENCY = "USD"

# (on demand, reserved, cost), per GPU-hour.
_PER_HOUR = {
    "NVIDIA H100 80GB HBM3": (3.00, 2.00, 1.80),
    "NVIDIA H200": (3.60, 2.40, 2.20),
    "NVIDIA H100 PCIe": (2.40, 1.60, 1.50),
    "NVIDIA A100-SXM4-80GB": (1.80, 1.20, 1.00),
    "NVIDIA L40S": (1.00, 0.70, 0.60),
}
PER_MILLION_TOKENS = 0.60
COMMITMENT_HOURS = 8760


def cost_per_hour(gpu_type: str) -> float:
    """What a GPU-hour costs its owner."""
    return _PER_HOUR[gpu_type][2]


def price_per_hour(gpu_type: str, contract: str) -> float:
    """What a GPU-hour is sold for."""
    on_demand, reserved, _ = _PER_HOUR[gpu_type]
    return reserved if contract == "reserved" else on_demand


def gpu_types() -> tuple[str, ...]:
    """The types that have prices."""
    return tuple(_PER_HOUR)
