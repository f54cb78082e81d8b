"""What a plan holds: workloads on seats, with the faults that are injected into them."""

from dataclasses import dataclass, field

from mfu_sdk.provider.simulate.fabric import Path
from mfu_sdk.provider.simulate.faults import Injected
from mfu_sdk.provider.simulate.sender import Seat
from mfu_sdk.provider.simulate.serving import Service
from mfu_sdk.provider.simulate.silicon import Gpu
from mfu_sdk.provider.simulate.training import Job


@dataclass(frozen=True, slots=True)
class Restart:
    """A crash at `at_s`: down for `down_s`, then the last `lost_s` are done again. `xid`: what the driver said."""

    at_s: float
    down_s: float
    lost_s: float
    xid: int


@dataclass(frozen=True, slots=True)
class Training:
    """A training run: its healthy job, later versions of it that are no fault, and its crashes.

    `calibrated`: the links as the tenant's SDK measured them, which is what it compares with; None where it measures on
    whatever path the job has.
    """

    job: Job
    versions: tuple[tuple[float, Job], ...] = ()
    restarts: tuple[Restart, ...] = ()
    calibrated: Path | None = None


@dataclass(frozen=True, slots=True)
class Serving:
    """Replicas of a service, each on as many seats as its tensor parallelism needs."""

    service: Service
    replicas: int


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload over [start_s, end_s) of virtual time, allocated until `held_until_s`.

    `nature` says why it is as it is: "healthy", the name of a hard negative, or "faulty". `signals` is what its SDK
    tells, None where it has none; `dcgm` whether its machines have the provider's exporter. `bias`: how far the SDK's
    expectation is off, as a factor.
    """

    tenant: str
    name: str
    gpu: Gpu
    what: Training | Serving
    seats: tuple[Seat, ...]
    start_s: float
    end_s: float
    held_until_s: float
    nature: str = "healthy"
    faults: tuple[Injected, ...] = ()
    signals: frozenset[str] | None = frozenset()
    dcgm: bool = False
    contract: str = "on_demand"
    allocation_id: str = ""
    bias: float = 1.0
    link_best: str = "nvlink"

    @property
    def devices(self) -> float:
        """How many GPUs it holds; a slice counts by its share of the SMs."""
        if isinstance(self.what, Serving):
            return len(self.seats) * self.what.service.share
        return float(len(self.seats))


@dataclass(frozen=True, slots=True)
class Sliced:
    """A GPU that is cut by MIG: its layouts over time, and a fault where its free slices fit nobody who waits."""

    gpu: Gpu
    seat: Seat
    layouts: tuple[tuple[float, tuple[str, ...]], ...]
    nature: str
    fault: Injected | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """A machine: its GPUs' UUIDs, the best link between two of them, and what joins machines."""

    name: str
    gpu: Gpu
    uuids: tuple[str, ...]
    link: str
    fabric: str
    region: str
    downtime: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole fleet: `queue` holds (hour, profile, waiting)."""

    seed: int
    duration_s: float
    hosts: tuple[Host, ...]
    workloads: tuple[Workload, ...]
    sliced: tuple[Sliced, ...] = ()
    queue: tuple[tuple[float, str, int], ...] = ()
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def gpus(self) -> int:
        """GPUs that are owned."""
        return sum(len(host.uuids) for host in self.hosts)
