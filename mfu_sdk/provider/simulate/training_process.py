"""The process of a training run: its windows, its calibration, its run span, what the exporter sees of it."""

from dataclasses import dataclass, replace

import numpy as np

from mfu_sdk import semconv
from mfu_sdk.provider.simulate import dcgm, pcie, training, wire
from mfu_sdk.provider.simulate.kernels import LARGEST_PRODUCT, MEMORY
from mfu_sdk.provider.simulate.ledger import Account
from mfu_sdk.provider.simulate.noise import Floats, Jitter
from mfu_sdk.provider.simulate.outgoing import PROVIDER, Outgoing
from mfu_sdk.provider.simulate.power import clock
from mfu_sdk.provider.simulate.segments import Segment
from mfu_sdk.provider.simulate.sender import Identity, hashed
from mfu_sdk.provider.simulate.training import Noise, Steady, Times
from mfu_sdk.provider.simulate.training_told import Told
from mfu_sdk.provider.simulate.windows import Form, Steps, Windows, doubles
from mfu_sdk.provider.simulate.workload import Restart, Training, Workload


@dataclass(slots=True)
class Running:
    """What the processes of a workload have in common: its sums, its noise, and when virtual time 0 is in unix ns."""

    workload: Workload
    seed: int
    zero_ns: int
    form: Form
    account: Account
    jitter: Jitter
    witness: np.random.Generator
    bus: np.random.Generator

    @property
    def restarts(self) -> tuple[Restart, ...]:
        """Its crashes."""
        assert isinstance(self.workload.what, Training)
        return self.workload.what.restarts

    def identity(self, segment: Segment) -> Identity:
        """Who a segment's process is."""
        job, name = segment.job, (self.workload.tenant, self.workload.name)
        chosen = (
            job.model.name, job.model.parameters, job.sequences, job.seq, job.accumulation, job.tp, job.sharded,
            job.ranks, job.kernels.other_dtype if job.kernels.converted > 0 else "bfloat16", job.kernels.converted,
            job.kernels.recomputed,
        )  # fmt: skip
        whole = (*chosen, job.kernels.unfused, job.kernels.quality, job.gpu.name)
        run_id = hashed(16, "run id", self.seed, *name, segment.run).hex()
        if run_id not in self.account.run_ids:
            self.account.run_ids.append(run_id)
        return Identity(
            workload=self.workload.name,
            run_id=run_id,
            attempt=segment.attempt,
            world_size=job.ranks,
            tp=job.tp,
            family=hashed(8, "family", job.model.name, job.model.parameters).hex(),
            intent=hashed(8, "intent", *chosen).hex(),
            fingerprint=hashed(8, "fingerprint", *whole).hex(),
            model_class=job.model.name,
            allocation_id=self.workload.allocation_id,
            link=job.path.link,
            link_best=self.workload.link_best,
            signals=self.workload.signals or frozenset(),
        )

    def witnessed(self, true_share: Floats) -> Floats:
        """A device's own count of `true_share`, which is as exact as its sampling."""
        noise: Floats = 1 + 0.004 * self.witness.standard_normal(true_share.shape)
        return np.clip(true_share * noise, 0.0, 1.0)


class Process:
    """The process of one segment; it goes on from `before` where that was the same one."""

    def __init__(self, run: Running, segment: Segment, before: "Process | None") -> None:
        self._run = run
        self.segment = segment
        self.state: Steady = training.steady(segment.job)
        self._others = tuple((fault, training.steady(job)) for fault, job in segment.without)
        same = before is not None and (before.segment.run, before.segment.attempt) == (segment.run, segment.attempt)
        self._at_s = segment.since_s
        self._first = 0
        self._totals = np.zeros(6)
        self._began_s = segment.since_s
        self._cooled: tuple[float, Floats] | None = None
        if before is not None:
            self._cooled = segment.since_s, np.array([each.ratio for each in before.state.clocks])
            self._at_s = max(self._at_s, before._at_s)
            redone = int(segment.redo_s / before.state.step_s)
            if before.segment.run == segment.run:
                self._first = max(0, before._first - redone)
            if same:
                self._totals, self._began_s = before._totals, before._began_s
        if self._cooled is not None and len(self._cooled[1]) != segment.job.ranks:
            self._cooled = None
        self._new = not same
        self._credit_s: float = before._credit_s if before is not None and same else 0.0
        self._credits = dict.fromkeys((fault for fault, _ in self._others), self._credit_s)
        self._who = run.identity(segment)
        workload = run.workload
        self._resources = [self._who.resource(rank, seat) for rank, seat in enumerate(workload.seats)]
        self._signals = workload.signals or frozenset()
        self._told = Told.of(workload, self.state)

    def advance(self, until_s: float, out: Outgoing) -> None:
        """Steps that start before virtual time `until_s`."""
        while self._at_s < until_s:
            steps = int((until_s - self._at_s) / (0.96 * self.state.step_s)) + 2
            noise = Noise.draw(self._run.jitter, steps, self.segment.job.ranks, self._at_s, self.state.step_s)
            found = training.times(self.state, noise, self._at_s, self._credit_s, self._cooled)
            ends_s = self._at_s + np.cumsum(found.total_s)
            taken = int(np.searchsorted(ends_s - found.total_s, until_s))
            self._credit_s = found.credit_s
            self._count_losses(noise, found, taken)
            self._send(found, ends_s - found.total_s, taken, out)
            self._first += taken
            self._at_s = float(ends_s[taken - 1])

    def _count_losses(self, noise: Noise, found: Times, taken: int) -> None:
        devices = self.segment.job.ranks
        for fault, state in self._others:
            with_s = float(found.total_s[:taken].sum())
            if fault.kind == "accounting":
                without_s = with_s / (1 + fault.severity)
            else:
                other = _noise_for(noise, state.job.ranks)
                better = training.times(state, other, self._at_s, self._credits[fault], None)
                self._credits[fault] = better.credit_s
                # The same tokens: a smaller batch needs more steps for them.
                done = self.segment.job.tokens / state.job.tokens
                without_s = float(better.total_s[:taken].sum()) * done
            self._run.account.lost(fault, with_s * devices, without_s * devices)

    def _send(self, found: Times, starts_s: Floats, taken: int, out: Outgoing) -> None:
        run, told, state = self._run, self._told, self.state
        total = found.total_s[:taken]
        start_ns = run.zero_ns + np.rint(starts_s[:taken] * 1e9).astype(np.int64)
        windows = Windows(Steps(start_ns, total, self._first, "train"), run.form)
        ranks = self.segment.job.ranks
        utilizations: list[int] = []
        if run.form.arrays:
            utilizations = np.rint(told.flops / (told.over.peak_flops_per_s * total) * 1e4).astype(int).tolist()
        counts = [end - at for at, end in zip(windows.begins, windows.ends, strict=True)]
        seconds: list[float] = windows.seconds.tolist()
        data, comm, host = (windows.sums(each[:taken]).tolist() for each in (found.data_s, found.comm_s, found.host_s))
        skew = windows.sums(found.skew_s[:taken])
        clocks = windows.means(found.clock[:taken])
        links: list[float] = windows.sums(found.links_s[:taken]).tolist()
        counted = np.array(counts)
        true = counted * state.work.tensor_flops / (self.segment.job.gpu.bf16_flops_per_s * windows.seconds)
        witness = run.witnessed(np.broadcast_to(true[:, None], clocks.shape))
        self._account_for(counts, seconds, (data, comm, host), skew)
        if run.workload.dcgm:
            bus = pcie.rates(state, counts, windows.seconds, run.bus)
            self._scrapes(windows, witness / clocks, clocks, bus, out)
        if run.workload.signals is None:
            return
        spans: list[list[bytes]] = [[] for _ in range(ranks)]
        for number, count in enumerate(counts):
            body = told.window(windows, number, count, seconds[number], utilizations)
            if ranks > 1 and "links" in self._signals and links[number] > 0:
                body += wire.double(semconv.COMM_BUS_RATE, count * state.traffic.bus_bytes / links[number])
            body += wire.double(semconv.STEP_DATA_TIME, data[number])
            if "components" in self._signals:
                body += wire.double(semconv.STEP_HOST_TIME, host[number])
                if ranks > 1:
                    body += wire.double(semconv.STEP_COMM_TIME, comm[number])
            for rank in range(ranks):
                own = body
                if "components" in self._signals and ranks > 1:
                    own += wire.double(semconv.STEP_SKEW_TIME, float(skew[number, rank]))
                if "clock" in self._signals:
                    own += wire.double(semconv.CLOCK_RATIO, float(clocks[number, rank])) + told.reasons[rank]
                if "witness" in self._signals and self.segment.job.gpu.witness:
                    own += wire.double(semconv.WITNESS_UTILIZATION, float(witness[number, rank]))
                spans[rank].append(windows.span(number, self._who, rank, own))
        for resource, ready in zip(self._resources, spans, strict=True):
            out.spans(run.workload.tenant, resource, ready)
        run.account.spans += ranks * len(counts)

    def _account_for(
        self, counts: list[int], seconds: list[float], parts: tuple[list[float], list[float], list[float]], skew: Floats
    ) -> None:
        steps, time_s, ranks = sum(counts), sum(seconds), self.segment.job.ranks
        self._totals += [steps, time_s, *map(sum, parts), float(skew.sum()) / ranks]
        account, told = self._run.account, self._told
        account.true_model_flops += steps * self.state.work.model_flops * ranks
        account.true_available_flops += time_s * told.true_peak_flops_per_s * ranks
        account.device_s += time_s * ranks
        if self._run.workload.signals is not None:
            account.model_flops += steps * told.flops * ranks
            account.available_flops += time_s * told.over.peak_flops_per_s * ranks
            account.tokens += steps * self.segment.job.tokens * ranks

    def _scrapes(self, windows: Windows, active: Floats, clocks: Floats, bus: Floats, out: Outgoing) -> None:
        gpu = self.segment.job.gpu
        crash = next((each for each in self._run.restarts if each.at_s == self.segment.until_s), None)
        start_ns, scraped, every_ns = windows.steps.start_ns, -1, dcgm.every_ns(self._run.form.length_ns)
        for number, at in enumerate(windows.begins):
            minute = int(start_ns[at]) // every_ns
            if minute == scraped:
                continue
            scraped = minute
            ending = crash is not None and int(start_ns[at]) / 1e9 > self._run.zero_ns / 1e9 + crash.at_s - 120
            for rank, seat in enumerate(self._run.workload.seats):
                xid = None if not self._run.form.arrays else 0
                if crash is not None and ending and rank == 0:
                    xid = crash.xid
                mhz = gpu.reference_mhz * float(clocks[number, rank])
                points = dcgm.scrape(
                    int(start_ns[at]), dcgm.labels(seat), float(min(1.0, active[number, rank])), mhz, 100.0,
                    (float(bus[number, rank, 0]), float(bus[number, rank, 1])), xid,
                )  # fmt: skip
                out.metrics(PROVIDER, dcgm.resource(seat.host), points)

    def calibration(self, out: Outgoing) -> None:
        """The measurement of the peak with which a process begins."""
        if self._run.workload.signals is None or not self._new:
            return
        job = self.segment.job
        peak = job.gpu.bf16_flops_per_s * LARGEST_PRODUCT * clock(job.gpu, 1.0, job.rest).ratio
        start_ns = self._run.zero_ns + int(self.segment.since_s * 1e9)
        body = wire.attributes({
            semconv.PEAK_FLOP_RATE: peak,
            semconv.PEAK_FLOP_RATE_LOW: 0.99 * peak,
            semconv.PEAK_FLOP_RATE_HIGH: 1.01 * peak,
            semconv.PEAK_SOURCE: "calibrated",
            semconv.PEAK_DTYPE: "bfloat16",
            semconv.CALIBRATION_TIER: "burst",
            semconv.PEAK_MEMORY_RATE: MEMORY * job.gpu.memory_bytes_per_s,
        })  # fmt: skip
        for rank, resource in enumerate(self._resources):
            trace, parent = self._who.run_ids(rank)
            ids = trace, hashed(8, "calibration", self._who.run_id, self._who.attempt, rank)
            span = wire.span(semconv.SPAN_CALIBRATION, ids, start_ns, start_ns + 2_000_000_000, body, parent)
            out.spans(self._run.workload.tenant, resource, [span])
            self._run.account.spans += 1

    def ended(self, out: Outgoing) -> None:
        """The span of the run; its skew is the mean of the ranks'."""
        if self._run.workload.signals is None:
            return
        steps, time_s, data_s, comm_s, host_s, skew_s = self._totals.tolist()
        told, job = self._told, self.segment.job
        flops, available = steps * told.flops, time_s * told.over.peak_flops_per_s
        values = {
            semconv.MODEL_FLOP: flops,
            semconv.HARDWARE_FLOP: steps * told.hardware_flops,
            semconv.AVAILABLE_FLOP: available,
            semconv.UTILIZATION: flops / available if available else None,
            semconv.EXPECTED: told.expected,
            semconv.STEP_TIME: time_s,
            semconv.STEP_DATA_TIME: data_s,
            semconv.RUN_OVERHEAD: 1e-6 * time_s,
        }
        if "components" in self._signals:
            values |= {semconv.STEP_HOST_TIME: host_s}
            if job.ranks > 1:
                values |= {semconv.STEP_COMM_TIME: comm_s, semconv.STEP_SKEW_TIME: skew_s}
        body = told.constants_run + doubles(values) + wire.whole(semconv.RUN_STEP_COUNT, int(steps))
        body += wire.whole(told.amount, int(steps) * job.tokens) if told.amount == semconv.TOKEN_COUNT else b""
        zero = self._run.zero_ns
        began_ns, ended_ns = zero + int(self._began_s * 1e9), zero + int(self._at_s * 1e9)
        for rank, resource in enumerate(self._resources):
            span = wire.span(semconv.SPAN_RUN, self._who.run_ids(rank), began_ns, ended_ns, body)
            out.spans(self._run.workload.tenant, resource, [span])
            self._run.account.spans += 1


def _noise_for(noise: Noise, ranks: int) -> Noise:
    """The same noise for fewer ranks."""
    return noise if noise.ranks.shape[1] == ranks else replace(noise, ranks=noise.ranks[:, :ranks])
