"""What the provider's own exporter sees of a GPU: dcgm-exporter's gauges, as a Collector scrapes them.

Names and labels: NVIDIA/dcgm-exporter, etc/dcp-metrics-included.csv and its default labels (gpu, UUID, Hostname,
modelName). PROF_PCIE_TX_BYTES and PROF_PCIE_RX_BYTES are rates in bytes/s, headers
among them. PROF_PIPE_TENSOR_ACTIVE is the share of cycles in which a tensor pipe was busy, which tells
nothing of the clock.
"""

from mfu_sdk import semconv
from mfu_sdk.provider.simulate import wire
from mfu_sdk.provider.simulate.sender import Seat

TENSOR_ACTIVE = "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"
SM_CLOCK = "DCGM_FI_DEV_SM_CLOCK"
GPU_UTIL = "DCGM_FI_DEV_GPU_UTIL"
PCIE_TX = "DCGM_FI_PROF_PCIE_TX_BYTES"
PCIE_RX = "DCGM_FI_PROF_PCIE_RX_BYTES"
XID_ERRORS = "DCGM_FI_DEV_XID_ERRORS"
ECC_DOUBLE = "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"
IDLE_MHZ = 345.0
"""The clock of a GPU with nothing to do."""

SCRAPE_NS = 60_000_000_000


def every_ns(window_ns: int) -> int:
    """How far apart scrapes are: as a Collector's, or as a bulk's longer windows, whose sums have the same means."""
    return max(SCRAPE_NS, window_ns)


def resource(host: str) -> bytes:
    """The exporter of one host."""
    return wire.resource({
        semconv.SERVICE_NAME: "dcgm-exporter",
        semconv.SERVICE_INSTANCE_ID: f"{host}:9400",
        semconv.HOST_NAME: host,
    })  # fmt: skip


def labels(seat: Seat) -> bytes:
    """A GPU's labels."""
    values = {"gpu": str(seat.index), "UUID": seat.uuid, "Hostname": seat.host, "modelName": seat.gpu_type}
    return b"".join(wire.text(name, value, 7) for name, value in values.items())


def scrape(
    time_ns: int, who: bytes, active: float, mhz: float, util: float, bus: tuple[float, float], xid: int | None = 0
) -> list[bytes]:
    """One scrape of one GPU: its seven gauges, or those five of which means are made where `xid` is None.

    `bus`: bytes/s that it sends and receives over PCIe.
    """
    values = {TENSOR_ACTIVE: active, SM_CLOCK: mhz, GPU_UTIL: util, PCIE_TX: bus[0], PCIE_RX: bus[1]}
    if xid is not None:
        values |= {XID_ERRORS: float(xid), ECC_DOUBLE: 1.0 if xid == 94 else 0.0}
    return [wire.gauge(name, "", [wire.point(time_ns, value, who)]) for name, value in values.items()]
