"""A served workload as it runs: its replicas' seconds of work, as windows of decode and prefill (or of inference)."""

import numpy as np

from mfu_sdk import semconv
from mfu_sdk.provider.simulate import dcgm, pcie, serving, wire
from mfu_sdk.provider.simulate.faults import Injected
from mfu_sdk.provider.simulate.ledger import Account
from mfu_sdk.provider.simulate.models import Transformer
from mfu_sdk.provider.simulate.noise import Floats, Jitter, generator
from mfu_sdk.provider.simulate.outgoing import PROVIDER, Outgoing
from mfu_sdk.provider.simulate.power import activity_of, clock
from mfu_sdk.provider.simulate.sender import Identity, Seat, hashed
from mfu_sdk.provider.simulate.serving import Load, Service
from mfu_sdk.provider.simulate.silicon import Gpu
from mfu_sdk.provider.simulate.windows import (
    Denominator,
    Form,
    Steps,
    Whole,
    Windows,
    constants,
    doubles,
    expectation,
)
from mfu_sdk.provider.simulate.workload import Serving, Workload

_SIGMA = 0.03
_RUN_INFO_S = 300.0
# The SDK says what a batch could reach at this many points between one sequence and all that fit.
_POINTS = 24


class ServingRun:
    """One served workload; `advance` sends what happens up to a moment."""

    def __init__(self, workload: Workload, seed: int, zero_ns: int, form: Form, account: Account) -> None:
        what = workload.what
        assert isinstance(what, Serving)
        # Of spare replicas the last ones get no requests any more.
        spare = next((each for each in workload.faults if each.kind == "idle_allocation"), None)
        idle = 0 if spare is None else max(1, round(spare.severity * what.replicas))
        tp = what.service.tp
        self._replicas = [
            _Replica(
                workload, number, workload.seats[number * tp : (number + 1) * tp], what.service, seed, zero_ns,
                form, account, spare if number >= what.replicas - idle else None,
            )
            for number in range(what.replicas)
        ]  # fmt: skip

    def advance(self, until_s: float, out: Outgoing) -> None:
        """Send what happens before virtual time `until_s`."""
        for replica in self._replicas:
            replica.advance(until_s, out)


class _Replica:
    """One replica: a process for each of its ranks."""

    def __init__(
        self,
        workload: Workload,
        number: int,
        seats: tuple[Seat, ...],
        service: Service,
        seed: int,
        zero_ns: int,
        form: Form,
        account: Account,
        idle: Injected | None,
    ) -> None:
        self._workload, self._service, self._seats, self._account = workload, service, seats, account
        self._zero_ns, self._form, self._idle = zero_ns, form, idle
        self._errors = 0 if form.arrays else None
        self._jitter = Jitter(generator(seed, "replica", workload.tenant, workload.name, number), _SIGMA)
        self._witness = generator(seed, "witness", workload.tenant, workload.name, number)
        # Everybody's day has its own shape, and virtual time 0 its own time of day.
        self._day_s = (zero_ns / 1e9) % 86400
        self._at_s = workload.start_s
        self._waiting = 0.0
        self._first = {"decode": 0, "prefill": 0, "inference": 0}
        self._signals = workload.signals or frozenset()
        self._who = self._identity(number, seed)
        account.run_ids.append(self._who.run_id)
        self._resources = [self._who.resource(rank, seat) for rank, seat in enumerate(seats)]
        self._peak = _peak(service)
        wrong = {fault.variant: 1 + fault.severity for fault in workload.faults if fault.kind == "accounting"}
        self._counted = wrong.get("over_counted", 1.0)
        self._over = Denominator(
            self._peak / wrong.get("wrong_peak", 1.0), "user" if "wrong_peak" in wrong else "theory", "bfloat16"
        )
        self._constants = {phase: constants(phase, self._over) for phase in self._first}
        self._capacity = serving.capacity(service)
        points = np.unique(np.geomspace(1, max(1.0, float(self._capacity.fits)), _POINTS))
        self._points = (
            points,
            [serving.one(service, float(each)) for each in points.tolist()],
            [serving.step_s(service, float(each)) for each in points.tolist()],
        )

    def advance(self, until_s: float, out: Outgoing) -> None:
        until_s = min(until_s, self._workload.end_s)
        if self._idle is not None and self._at_s < self._idle.onset_s < until_s:
            self._advance(self._idle.onset_s, out)
            # Whole seconds are served; the rest of the one in which it begins is nobody's.
            self._at_s = self._idle.onset_s
        self._advance(until_s, out)

    def _advance(self, until_s: float, out: Outgoing) -> None:
        seconds = int(until_s - self._at_s)
        if seconds <= 0:
            return
        if self._idle is not None and self._idle.holds(self._at_s):
            self._nothing(until_s, out)
            return
        load = serving.loads(self._service, self._jitter, seconds, self._at_s, self._day_s, self._waiting)
        self._waiting = float(load.waiting[-1])
        self._count_losses(load)
        start_ns: Whole = self._zero_ns + ((self._at_s + np.arange(seconds)) * 1e9).astype(np.int64)
        served = isinstance(self._service.model, Transformer)
        if served and self._service.prompt > 0:
            self._prefill(load, start_ns, out)
            start_ns = start_ns + np.rint(load.prefill_s * 1e9).astype(np.int64)
        self._decode(load, start_ns, "decode" if served else "inference", out)
        self._at_s += seconds

    def _count_losses(self, load: Load) -> None:
        for fault in self._workload.faults:
            if not fault.holds(self._at_s):
                continue
            with_s = float(load.decode_s.sum()) * len(self._seats)
            if fault.kind == "under_batched_inference":
                best = serving.tokens_per_s(self._service, float(self._capacity.usable))
                self._account.lost(fault, with_s, float(load.output.sum()) / best * len(self._seats))
            elif fault.kind == "accounting":
                self._account.lost(fault, with_s, with_s / (1 + fault.severity))

    def _prefill(self, load: Load, start_ns: Whole, out: Outgoing) -> None:
        work = serving.prompt_work(self._service)
        busy = load.prefill_s > 1e-6
        if not busy.any():
            return
        requests = load.prompts[busy] / self._service.prompt
        flops = requests * work.model_flops
        could = self._reachable(work.model_flops, serving.prompt_s(self._service))
        self._send("prefill", start_ns[busy], load.prefill_s[busy], {
            "flops": flops, "bytes": requests * work.bytes_moved, "tensor": requests * work.tensor_flops,
            "tokens": load.prompts[busy], "expected": np.full(len(flops), could),
            "waiting": load.waiting[busy], "kv_free": load.kv_free[busy], "busy": requests * work.tensor_s,
            "running": np.ones(len(flops)),
        }, out)  # fmt: skip

    def _decode(self, load: Load, start_ns: Whole, phase: str, out: Outgoing) -> None:
        busy = load.decode_s > 1e-6
        if not busy.any():
            return
        running = load.running[busy]
        points, works, each_s = self._points
        iterations = load.output[busy] / running
        flops, moved, tensor, tensor_s = (
            iterations * np.interp(running, points, [getattr(work, name) for work in works])
            for name in ("model_flops", "bytes_moved", "tensor_flops", "tensor_s")
        )
        could = [self._reachable(work.model_flops, took) for work, took in zip(works, each_s, strict=True)]
        self._send(phase, start_ns[busy], load.decode_s[busy], {
            "flops": flops, "bytes": moved, "tensor": tensor, "tokens": load.output[busy],
            "expected": np.interp(running, points, could), "waiting": load.waiting[busy], "kv_free": load.kv_free[busy],
            "busy": tensor_s, "running": running, "comm": load.comm_s[busy],
            "requests": load.output[busy] / self._service.output,
            "answering_s": running * (load.decode_s + load.prefill_s)[busy],
        }, out)  # fmt: skip

    def _reachable(self, flops: float, took_s: float) -> float:
        """The MFU that the SDK would expect of so many FLOPs in such a time, by what it counts and claims."""
        return flops * self._counted / (self._over.peak_flops_per_s * took_s) * self._workload.bias

    def _send(self, phase: str, start_ns: Whole, duration_s: Floats, columns: dict[str, Floats], out: Outgoing) -> None:
        steps = Steps(start_ns.astype(np.int64), duration_s, self._first[phase], phase)
        self._first[phase] += len(duration_s)
        windows = Windows(steps, self._form)
        flops = columns["flops"] * self._counted
        peak = self._over.peak_flops_per_s
        utilizations: list[int] = []
        if self._form.arrays:
            utilizations = np.rint(flops / (peak * duration_s) * 1e4).astype(int).tolist()
        sums = {name: windows.sums(columns[name]) for name in ("flops", "bytes", "tensor", "tokens", "busy")}
        means = {name: windows.means(columns[name]).tolist() for name in ("running", "waiting", "kv_free")}
        expected: list[float] = windows.means(columns["expected"]).tolist()
        seconds: list[float] = windows.seconds.tolist()
        counted: list[float] = windows.sums(flops).tolist()
        moved, tokens = sums["bytes"].tolist(), np.rint(sums["tokens"]).astype(int).tolist()
        comm = windows.sums(columns["comm"]).tolist() if "comm" in columns and len(self._seats) > 1 else None
        ended = np.rint(windows.sums(columns["requests"])).astype(int).tolist() if "requests" in columns else None
        answers = None
        if "answering_s" in columns:
            # A sequence gets a token a step, and waits while prompts of others are read.
            answers = (
                windows.sums(columns["answering_s"]) / np.maximum(windows.sums(columns["tokens"]), 1e-9)
            ).tolist()
        true = np.clip(sums["tensor"] / (self._peak * windows.seconds), 0, 1)
        witness = np.clip(true * (1 + 0.004 * self._witness.standard_normal(len(true))), 0, 1)
        tensor_s, whole_s = float(sums["busy"].sum()), float(duration_s.sum())
        activity = activity_of(tensor_s, max(0.0, whole_s - tensor_s))
        found = clock(self._service.gpu, activity, self._service.rest)
        ratio, reasons = found.ratio, wire.texts(semconv.THROTTLE_REASONS, found.reasons) if found.reasons else b""
        self._account_for(float(sums["flops"].sum()), sum(counted), sum(seconds), sum(tokens), phase)
        if self._workload.dcgm and phase != "prefill":
            self._scrapes(windows, np.clip(witness / ratio, 0, 1), ratio, out)
        if self._workload.signals is None:
            return
        spans: list[list[bytes]] = [[] for _ in self._seats]
        for number in range(len(windows)):
            available = seconds[number] * peak
            values: dict[str, float | None] = {
                semconv.MODEL_FLOP: counted[number], semconv.HARDWARE_FLOP: counted[number],
                semconv.AVAILABLE_FLOP: available, semconv.UTILIZATION: counted[number] / available,
                semconv.HARDWARE_UTILIZATION: counted[number] / available,
                semconv.DTYPE_UTILIZATION: counted[number] / available,
                **expectation(expected[number], available),
                semconv.ARITHMETIC_INTENSITY: float(sums["flops"][number]) / moved[number] if moved[number] else None,
                semconv.BATCH_RUNNING: means["running"][number],
            }  # fmt: skip
            if "load" in self._signals:
                values |= self._load_told(phase, number, means)
            if "clock" in self._signals:
                values[semconv.CLOCK_RATIO] = ratio
            if "witness" in self._signals and self._service.gpu.witness:
                values[semconv.WITNESS_UTILIZATION] = float(witness[number])
            if comm is not None and "components" in self._signals:
                values[semconv.STEP_COMM_TIME] = comm[number]
            body = self._constants[phase] + windows.shared(number, utilizations) + doubles(values)
            if "clock" in self._signals:
                body += reasons
            body += wire.whole(_AMOUNT.get(phase, semconv.SAMPLE_COUNT), tokens[number])
            if ended is not None:
                body += wire.whole(semconv.REQUEST_COUNT, ended[number]) + wire.whole(semconv.REQUEST_FAILED, 0)
            for rank, into in enumerate(spans):
                into.append(windows.span(number, self._who, rank, body))
            if answers is not None and ended is not None and ended[number]:
                spans[0].append(self._request(windows, number, ended[number], answers[number], tokens[number]))
        for resource, ready in zip(self._resources, spans, strict=True):
            out.spans(self._workload.tenant, resource, ready)
        self._account.spans += len(self._seats) * len(windows)

    def _request(self, windows: Windows, number: int, ended: int, answer_s: float, tokens: int) -> bytes:
        """One request of a window, kept out of as many as ended in it; its FLOPs and tokens are the window's."""
        slot, start_ns = windows.slots[number], int(windows.steps.start_ns[windows.begins[number]])
        of_text = isinstance(self._service.model, Transformer)
        asked = self._who.run_id, slot, windows.steps.first + windows.begins[number]
        ids = hashed(16, "request", *asked), hashed(8, "request", *asked)
        body = wire.double(semconv.SAMPLE_RATIO, 1 / ended)
        if of_text:
            body += wire.double(semconv.TIME_PER_OUTPUT_TOKEN, answer_s)
        lasted_s = answer_s * (tokens / ended if of_text else 1)
        self._account.spans += 1
        return wire.span(semconv.SPAN_INFERENCE, ids, start_ns, start_ns + round(lasted_s * 1e9), body)

    def _load_told(self, phase: str, number: int, means: dict[str, list[float]]) -> dict[str, float | None]:
        service = self._service
        told: dict[str, float | None] = {
            semconv.BATCH_FEASIBLE: float(self._capacity.fits),
            semconv.QUEUE_WAITING: means["waiting"][number],
            semconv.LATENCY_TARGET: service.latency_s,
        }
        if isinstance(service.model, Transformer):
            told[semconv.KV_CACHE_FREE_RATIO] = means["kv_free"][number]
        if phase != "prefill":
            work = serving.one(service, float(self._capacity.fits))
            took_s = serving.step_s(service, float(self._capacity.fits))
            told[semconv.EXPECTED_FEASIBLE] = self._reachable(work.model_flops, took_s)
        return told

    def _account_for(self, flops: float, counted: float, seconds: float, tokens: float, phase: str) -> None:
        ranks, account = len(self._seats), self._account
        account.true_model_flops += flops * ranks
        account.true_available_flops += seconds * self._peak * ranks
        account.device_s += seconds * ranks
        if self._workload.signals is not None:
            account.model_flops += counted * ranks
            account.available_flops += seconds * self._over.peak_flops_per_s * ranks
            account.tokens += tokens if phase != "inference" else 0.0

    def _scrapes(self, windows: Windows, active: Floats, ratio: float, out: Outgoing) -> None:
        scraped, every_ns = -1, dcgm.every_ns(self._form.length_ns)
        for number, at in enumerate(windows.begins):
            at_ns = int(windows.steps.start_ns[at])
            if at_ns // every_ns == scraped:
                continue
            scraped = at_ns // every_ns
            for seat in self._seats:
                mhz = self._service.gpu.reference_mhz * ratio
                points = dcgm.scrape(
                    at_ns, dcgm.labels(seat), float(active[number]), mhz, 100.0, pcie.WORKING, self._errors
                )
                out.metrics(PROVIDER, dcgm.resource(seat.host), points)

    def _nothing(self, until_s: float, out: Outgoing) -> None:
        """A replica without requests has no step; its process says every few minutes that it lives."""
        for at_s in np.arange(self._at_s, until_s, _RUN_INFO_S).tolist():
            at_ns = self._zero_ns + int(at_s * 1e9)
            for resource, seat in zip(self._resources, self._seats, strict=True):
                if self._workload.signals is not None:
                    alive = wire.point(at_ns, 1.0, wire.text(semconv.HW_ID, seat.hardware_id, 7))
                    metric = wire.gauge(semconv.METRIC_RUN_INFO, "1", [alive])
                    out.metrics(self._workload.tenant, resource, [metric])
                if self._workload.dcgm:
                    points = dcgm.scrape(at_ns, dcgm.labels(seat), 0.0, dcgm.IDLE_MHZ, 0.0, pcie.IDLE, self._errors)
                    out.metrics(PROVIDER, dcgm.resource(seat.host), points)
        self._at_s = until_s

    def _identity(self, number: int, seed: int) -> Identity:
        service, workload = self._service, self._workload
        name = workload.tenant, workload.name
        chosen = service.model.name, service.model.parameters, service.most_running, service.context, service.tp
        return Identity(
            workload=workload.name,
            run_id=hashed(16, "run id", seed, *name, number).hex(),
            attempt=0,
            world_size=service.tp,
            tp=service.tp,
            family=hashed(8, "family", service.model.name, service.model.parameters).hex(),
            intent=hashed(8, "intent", *chosen).hex(),
            fingerprint=hashed(8, "fingerprint", *chosen, service.gpu.name).hex(),
            model_class=service.model.name,
            allocation_id=workload.allocation_id,
            link=service.path.link,
            link_best=workload.link_best if service.share == 1 else "none",
            signals=workload.signals or frozenset(),
        )


_AMOUNT = {"decode": semconv.TOKEN_COUNT, "prefill": semconv.TOKEN_COUNT}


def _peak(service: Service) -> float:
    gpu: Gpu = service.gpu
    return gpu.bf16_flops_per_s * service.share
