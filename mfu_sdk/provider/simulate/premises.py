"""Machines and tenants: what is owned, and who rents it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mfu_sdk.provider.simulate.noise import generator
from mfu_sdk.provider.simulate.sender import SIGNALS, Seat, hashed
from mfu_sdk.provider.simulate.silicon import H100_PCIE, L40S, Gpu
from mfu_sdk.provider.simulate.workload import Host

MACHINE = 8
"""GPUs of a machine."""

_NAMES = (
    "acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "tyrell", "cyberdyne", "aperture", "soylent",
    "wonka",
)  # fmt: skip
_CONTRACTS = ("on_demand", "reserved", "on_demand", "per_token")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant: `profile` is "full" or a name of `scenario.MISSING`."""

    name: str
    profile: str
    contract: str

    @property
    def signals(self) -> frozenset[str] | None:
        """What its SDK tells; None without one."""
        return {
            "no_links": SIGNALS - {"links"},
            "no_load": SIGNALS - {"load"},
            "no_clock": SIGNALS - {"clock", "witness"},
            "old_sdk": frozenset[str](),
            "dcgm_only": None,
            "nothing": None,
        }.get(self.profile, SIGNALS)


def tenants(seed: int, gpus: int, missing: Mapping[str, float]) -> tuple[Tenant, ...]:
    """A dozen tenants, or one for each 24 GPUs; `missing` has the shares of them that do not tell everything."""
    count = max(len(_NAMES), gpus // 24)
    rng = generator(seed, "tenants")
    profiles = [name for name, share in missing.items() for _ in range(round(share * count))]
    profiles = ["full"] * (count - len(profiles)) + profiles[:count]
    order = rng.permutation(count)
    found = []
    for number in range(count):
        again = number // len(_NAMES)
        name = _NAMES[number % len(_NAMES)] + (f"-{again + 1}" if again else "")
        found.append(Tenant(name, profiles[int(order[number])], _CONTRACTS[number % len(_CONTRACTS)]))
    return tuple(found)


class Premises:
    """Machines that are bought as they are needed, up to `gpus` GPUs."""

    def __init__(self, seed: int, gpus: int, rng: np.random.Generator) -> None:
        self._seed, self._left, self._rng = seed, gpus, rng
        self.hosts: list[Host] = []
        # Seats that are free, by type and link.
        self._open: dict[tuple[str, str], list[list[Seat]]] = {}

    def take(self, gpu: Gpu, ranks: int, link: str | None = None) -> tuple[Seat, ...] | None:
        """`ranks` GPUs: of one machine, or whole machines where there are more; None where there is no room left."""
        link = link or best_link(gpu)
        if ranks > MACHINE:
            if self._left < ranks or ranks % MACHINE:
                return None
            return tuple(seat for _ in range(ranks // MACHINE) for seat in self._buy(gpu, link, MACHINE))
        machines = self._open.setdefault((gpu.name, link), [])
        for seats in machines:
            if len(seats) >= ranks:
                taken, seats[:] = tuple(seats[:ranks]), seats[ranks:]
                return taken
        if self._left < ranks:
            return None
        bought = self._buy(gpu, link, min(MACHINE, self._left))
        machines.append(bought[ranks:])
        return tuple(bought[:ranks])

    def finish(self) -> None:
        """Buy what is left, to stand unsold."""
        while self._left:
            self._buy(L40S, "pcie", min(MACHINE, self._left))

    @property
    def left(self) -> int:
        """GPUs that may still be bought."""
        return self._left

    def _buy(self, gpu: Gpu, link: str, count: int) -> list[Seat]:
        self._left -= count
        name = f"node-{len(self.hosts) + 1:04d}"
        uuids = tuple(f"GPU-{_uuid(self._seed, name, index)}" for index in range(count))
        fabric = "ethernet" if gpu is L40S else "infiniband"
        region = ("eu-1", "us-1")[int(self._rng.integers(2))]
        self.hosts.append(Host(name, gpu, uuids, link, fabric, region))
        return [Seat(name, index, uuid, gpu.name) for index, uuid in enumerate(uuids)]


def best_link(gpu: Gpu) -> str:
    """What joins the GPUs of a machine of this type, unless it is a cheaper one."""
    return "nvlink" if gpu.nvlink_gpus else "pcie"


def slice_of(seed: int, seat: Seat, number: int, profile: str) -> Seat:
    """A MIG slice of the GPU of `seat`."""
    return Seat(seat.host, seat.index, seat.uuid, seat.gpu_type, profile, f"MIG-{_uuid(seed, seat.uuid, number)}")


def _uuid(*parts: object) -> str:
    text = hashed(16, "uuid", *parts).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


PCIE_ONLY = (H100_PCIE, "pcie")
"""Machines whose pairs have no bridge."""
