"""What the questions are asked of: sums by whatever the question tells apart."""

from collections.abc import Hashable
from dataclasses import dataclass

from mfu_sdk.provider.rollup import Sums


@dataclass(frozen=True, slots=True)
class Cell:
    """Sums of what has the same names; a name is None where nobody said it or the question does not tell it apart.

    `start_unix_s` is the start of its bucket of time; `first_unix_s` when anything of it was first seen.
    """

    sums: Sums
    tenant: str | None = None
    workload: str | None = None
    family: str | None = None
    gpu_type: str | None = None
    world_size: int | None = None
    phase: str | None = None
    intent: str | None = None
    run_id: str | None = None
    start_unix_s: int | None = None
    first_unix_s: int | None = None

    @property
    def work(self) -> tuple[Hashable, ...]:
        """What makes two cells the same work: the intent and phase; without an intent the names, as far as known."""
        if self.intent is not None:
            return (self.intent, self.phase)
        return (None, self.phase, self.tenant, self.workload, self.family, self.world_size)
