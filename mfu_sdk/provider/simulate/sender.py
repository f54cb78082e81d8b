"""Who sends a simulated span: the resource and the ids of one process, as the SDK makes them."""

from dataclasses import dataclass
from hashlib import blake2b

from mfu_sdk import semconv
from mfu_sdk.provider.simulate import wire

SIGNALS = frozenset({"identity", "components", "links", "load", "clock", "witness"})
"""What an SDK may tell besides sums of time, FLOPs and tokens: hashes of the configuration, where step time went, links
and their rates, a server's load, clocks, the device's own count."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One GPU (or a slice of one) of a host. `index` is the GPU's number on it."""

    host: str
    index: int
    uuid: str
    gpu_type: str
    mig_profile: str | None = None
    mig_uuid: str | None = None

    @property
    def hardware_id(self) -> str:
        """`hw.id`."""
        return self.mig_uuid or self.uuid


@dataclass(frozen=True, slots=True)
class Identity:
    """What all ranks of one attempt have in common; `family`, `intent` and `fingerprint` are hashes."""

    workload: str
    run_id: str
    attempt: int
    world_size: int
    tp: int
    family: str
    intent: str
    fingerprint: str
    model_class: str
    allocation_id: str
    link: str
    link_best: str
    signals: frozenset[str]

    def resource(self, rank: int, seat: Seat) -> bytes:
        """The resource of `rank`, encoded."""
        values: dict[str, wire.Value | None] = {
            semconv.SERVICE_NAME: self.workload,
            semconv.SERVICE_INSTANCE_ID: hashed(16, "instance", self.run_id, self.attempt, rank).hex(),
            semconv.RUN_ID: self.run_id,
            semconv.RUN_ATTEMPT: self.attempt,
            semconv.WORKLOAD_NAME: self.workload,
            semconv.WORKLOAD_FAMILY: self.family,
            semconv.DIST_RANK: rank,
            semconv.DIST_LOCAL_RANK: rank % 8,
            semconv.DIST_WORLD_SIZE: self.world_size,
            semconv.HOST_NAME: seat.host,
            semconv.HW_ID: seat.hardware_id,
            semconv.HW_NAME: seat.gpu_type,
            semconv.HW_VENDOR: "nvidia",
            semconv.DISTRO_NAME: "mfu_sdk",
        }
        if self.world_size > 1:
            values[semconv.DIST_AXES["dp"]] = self.world_size // self.tp
            values[semconv.DIST_AXES["tp"]] = self.tp
        if "identity" in self.signals:
            values |= {
                semconv.CONFIG_INTENT: self.intent,
                semconv.CONFIG_FINGERPRINT: self.fingerprint,
                semconv.MODEL_CLASS: self.model_class,
                semconv.ALLOCATION_ID: self.allocation_id,
            }
        if "links" in self.signals:
            values |= {semconv.TOPOLOGY_LINK: self.link, semconv.TOPOLOGY_LINK_BEST: self.link_best}
        if seat.mig_profile is not None:
            values |= {
                semconv.HW_PARENT: seat.uuid,
                semconv.MIG_PROFILE: seat.mig_profile,
                semconv.MIG_UUID: seat.mig_uuid,
            }
        return wire.resource(values)

    def run_ids(self, rank: int) -> tuple[bytes, bytes]:
        """Trace and span of the run."""
        return hashed(16, "run", self.run_id), hashed(8, "run", self.run_id, self.attempt, rank)

    def window_trace(self, slot: int) -> bytes:
        """The trace of all ranks' windows in `slot`."""
        return hashed(16, "window", self.run_id, self.attempt, slot)

    def window_span(self, rank: int, slot: int, phase: str, first: int) -> bytes:
        """The window of `rank` that step `first` opened."""
        return hashed(8, "window", self.run_id, self.attempt, rank, slot, phase, first)


def hashed(size: int, *parts: object) -> bytes:
    """BLAKE2b (RFC 7693) of the parts, `size` bytes, never all zero."""
    found = blake2b("".join([f"{part}\0" for part in parts]).encode(), digest_size=size).digest()
    return found if any(found) else b"\1" * size
