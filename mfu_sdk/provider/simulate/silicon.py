"""The GPUs of a simulated fleet, as their vendor's datasheets have them.

Rates are dense and at the reference clock; link rates are of one direction. PCIe: 31.5 GB/s a direction at generation 4
and 63 at 5 for 16 lanes (PCI-SIG). NICs are those of the vendor's reference machines: ConnectX-7 of 400 Gb/s a GPU in
DGX H100, ConnectX-6 of 200 Gb/s a GPU in DGX A100, one of 200 Gb/s for two GPUs in an OVX L40S.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU type. `name` is the driver's; `boost` is the highest SM clock over the clock that the peak is rated at.

    `limit_w` is the board's power limit and `idle_w` what it draws with nothing to do. `mig_sms` is how many SMs one
    compute slice has (None: no MIG), `witness` whether the driver counts tensor-pipe activity in process (NVML GPM,
    since Hopper).
    """

    name: str
    bf16_flops_per_s: float
    tf32_flops_per_s: float
    fp32_flops_per_s: float
    memory_bytes_per_s: float
    memory_bytes: float
    sms: int
    reference_mhz: int
    boost: float
    limit_w: float
    idle_w: float
    nvlink_bytes_per_s: float
    nvlink_gpus: int
    pcie_bytes_per_s: float
    nic_bytes_per_s: float
    mig_sms: int | None
    witness: bool
    source: str

    def flops_per_s(self, dtype: str) -> float:
        """The peak for products of `dtype`."""
        return {
            "bfloat16": self.bf16_flops_per_s,
            "tf32": self.tf32_flops_per_s,
            "float32": self.fp32_flops_per_s,
        }[dtype]


H100 = Gpu(
    "NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12, 66.9e12, 3.35e12, 80e9, 132, 1830, 1980 / 1830, 700, 75,
    450e9, 8, 63e9, 50e9, mig_sms=16, witness=True, source="NVIDIA H100 datasheet and whitepaper (SXM5)",
)  # fmt: skip
H200 = Gpu(
    "NVIDIA H200", 989.4e12, 494.7e12, 66.9e12, 4.8e12, 141e9, 132, 1830, 1980 / 1830, 700, 75,
    450e9, 8, 63e9, 50e9, mig_sms=16, witness=True, source="NVIDIA H200 datasheet",
)  # fmt: skip
# NVLink bridges join pairs.
H100_PCIE = Gpu(
    "NVIDIA H100 PCIe", 756.4e12, 378.2e12, 51.2e12, 2.0e12, 80e9, 114, 1620, 1755 / 1620, 350, 50,
    300e9, 2, 63e9, 50e9, mig_sms=16, witness=True, source="NVIDIA H100 PCIe product brief",
)  # fmt: skip
A100 = Gpu(
    "NVIDIA A100-SXM4-80GB", 311.9e12, 155.9e12, 19.5e12, 2.039e12, 80e9, 108, 1410, 1.0, 400, 55,
    300e9, 8, 31.5e9, 25e9, mig_sms=14, witness=False, source="NVIDIA A100 datasheet",
)  # fmt: skip
L40S = Gpu(
    "NVIDIA L40S", 362.1e12, 183.2e12, 91.6e12, 864e9, 48e9, 142, 2520, 1.0, 350, 35,
    0.0, 0, 31.5e9, 12.5e9, mig_sms=None, witness=False, source="NVIDIA L40S datasheet",
)  # fmt: skip

GPUS: Final = {gpu.name: gpu for gpu in (H100, H200, H100_PCIE, A100, L40S)}
