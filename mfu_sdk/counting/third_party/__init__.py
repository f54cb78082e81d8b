"""What the kernels of other libraries cost; none of them is imported: each is known by its name."""

from mfu_sdk.counting.third_party.tables import FUNCTIONS, KERNELS, OPERATORS

__all__ = ["FUNCTIONS", "KERNELS", "OPERATORS"]
