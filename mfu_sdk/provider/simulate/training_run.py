"""A training workload as it runs: one process after the other."""

import numpy as np

from mfu_sdk.provider.simulate import dcgm, pcie
from mfu_sdk.provider.simulate.ledger import Account
from mfu_sdk.provider.simulate.noise import Jitter, generator
from mfu_sdk.provider.simulate.outgoing import PROVIDER, Outgoing
from mfu_sdk.provider.simulate.segments import segments
from mfu_sdk.provider.simulate.training_process import Process, Running
from mfu_sdk.provider.simulate.windows import Form
from mfu_sdk.provider.simulate.workload import Training, Workload

_SIGMA = 0.012


class TrainingRun:
    """One training workload; `advance` sends what happens up to a moment."""

    def __init__(self, workload: Workload, seed: int, zero_ns: int, form: Form, account: Account) -> None:
        assert isinstance(workload.what, Training)
        self.workload = workload
        name = workload.tenant, workload.name
        self._running = Running(
            workload, seed, zero_ns, form, account, Jitter(generator(seed, "run", *name), _SIGMA),
            generator(seed, "witness", *name), generator(seed, "pcie", *name),
        )  # fmt: skip
        self._pending = segments(workload)
        self._at: Process | None = None
        self._idle_s = workload.end_s

    def advance(self, until_s: float, out: Outgoing) -> None:
        """Send what happens before virtual time `until_s`."""
        while self._pending and self._pending[0].since_s < until_s:
            segment = self._pending[0]
            if self._at is None or self._at.segment is not segment:
                self._at = Process(self._running, segment, self._at)
                self._at.calibration(out)
            self._at.advance(min(until_s, segment.until_s), out)
            if segment.until_s > until_s:
                return
            if segment.last:
                self._at.ended(out)
            self._pending.pop(0)
        self._idle(until_s, out)

    def _idle(self, until_s: float, out: Outgoing) -> None:
        """Once nothing runs any more: what the provider's exporter sees of GPUs that are still held."""
        if self._pending or not self.workload.dcgm:
            return
        held_s = min(until_s, self.workload.held_until_s)
        every_s = dcgm.every_ns(self._running.form.length_ns) / 1e9
        for at_s in np.arange(self._idle_s, held_s, every_s).tolist():
            self._idle_s = at_s + every_s
            for seat in self.workload.seats:
                points = dcgm.scrape(
                    self._running.zero_ns + int(at_s * 1e9), dcgm.labels(seat), 0.0, dcgm.IDLE_MHZ, 0.0, pcie.IDLE,
                    0 if self._running.form.arrays else None,
                )  # fmt: skip
                out.metrics(PROVIDER, dcgm.resource(seat.host), points)
