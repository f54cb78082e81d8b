"""What the process of a training run says of its steps, right or wrong: the part that stays as long as the job does."""

from collections.abc import Mapping
from dataclasses import dataclass

from mfu_sdk import semconv
from mfu_sdk.provider.simulate import training, wire
from mfu_sdk.provider.simulate.kernels import LARGEST_PRODUCT, MEMORY
from mfu_sdk.provider.simulate.models import Transformer
from mfu_sdk.provider.simulate.power import clock
from mfu_sdk.provider.simulate.training import Job, Steady
from mfu_sdk.provider.simulate.windows import Denominator, Windows, constants, doubles, expectation
from mfu_sdk.provider.simulate.workload import Training, Workload


@dataclass(frozen=True, slots=True)
class Told:
    """What a process says of its steps, right or wrong: constants of a segment."""

    over: Denominator
    true_peak_flops_per_s: float
    flops: float
    hardware_flops: float
    expected: float
    intensity: float
    achievable_flops_per_s: float
    job: Job
    constants: bytes
    constants_run: bytes
    reasons: tuple[bytes, ...]
    bus_bytes: float
    by_dtype: float

    @classmethod
    def of(cls, workload: Workload, state: Steady) -> "Told":
        """That of a workload in one state."""
        what = workload.what
        assert isinstance(what, Training)
        job, work = state.job, state.work
        dtype = job.kernels.other_dtype if job.kernels.converted >= 0.5 else "bfloat16"
        peak = job.gpu.flops_per_s(dtype)
        # Products change their dtype, attention keeps its own: the counter prices each operator by what it ran in.
        converted = job.kernels.converted * (1 - _attention_flops(job, job.tokens)[0] / work.model_flops)
        wrong = {fault.variant: 1 + fault.severity for fault in workload.faults if fault.kind == "accounting"}
        claimed = peak / wrong.get("wrong_peak", 1.0)
        over = Denominator(claimed, "user" if "wrong_peak" in wrong else "theory", dtype)
        counted = wrong.get("over_counted", 1.0)
        calibrated = what.calibrated or job.path
        expected_s = training.calibrated_s(job, calibrated) / workload.bias
        signals = workload.signals or frozenset()
        extra: dict[str, float | None] = {}
        if "links" in signals and job.ranks > 1:
            extra |= {
                semconv.COMM_BUS_RATE_PEAK: training.bus_rate(job, calibrated),
                semconv.COMM_IDEAL_RATIO: training.ideal_links_ratio(job),
            }
        reasons = tuple(
            wire.texts(semconv.THROTTLE_REASONS, each.reasons) if each.reasons else b"" for each in state.clocks
        )
        base = constants("train", over) + doubles(extra)
        run = wire.attributes({
            semconv.CONVENTION: "exact", semconv.PEAK_FLOP_RATE: claimed, semconv.PEAK_SOURCE: over.source,
            semconv.PEAK_DTYPE: dtype, semconv.COUNT_COVERAGE: 1.0,
            semconv.PEAK_MEMORY_RATE: MEMORY * job.gpu.memory_bytes_per_s,
        })  # fmt: skip
        at_full_load = clock(job.gpu, 1.0, job.rest).ratio
        return cls(
            over, peak, work.model_flops * counted, work.hardware_flops * counted,
            work.model_flops * counted / (claimed * expected_s), work.hardware_flops / work.bytes_moved,
            peak * LARGEST_PRODUCT * at_full_load, job, base, run, reasons,
            state.traffic.bus_bytes if extra else 0.0,
            # Each dtype's FLOPs over its own peak.
            (1 - converted) * peak / job.gpu.bf16_flops_per_s
            + converted * peak / job.gpu.flops_per_s(job.kernels.other_dtype),
        )  # fmt: skip

    @property
    def amount(self) -> str:
        """What `Job.tokens` are."""
        return semconv.TOKEN_COUNT if isinstance(self.job.model, Transformer) else semconv.SAMPLE_COUNT

    def window(self, windows: Windows, number: int, count: int, seconds: float, utilizations: list[int]) -> bytes:
        """What all ranks of a window share."""
        available = seconds * self.over.peak_flops_per_s
        flops, job = count * self.flops, self.job
        values: Mapping[str, float | None] = {
            semconv.MODEL_FLOP: flops,
            semconv.HARDWARE_FLOP: count * self.hardware_flops,
            semconv.AVAILABLE_FLOP: available,
            semconv.UTILIZATION: flops / available,
            semconv.HARDWARE_UTILIZATION: count * self.hardware_flops / available,
            semconv.DTYPE_UTILIZATION: flops * self.by_dtype / available,
            semconv.ACHIEVABLE_UTILIZATION: flops / (self.achievable_flops_per_s * seconds),
            **expectation(self.expected, available),
            semconv.ARITHMETIC_INTENSITY: self.intensity,
            semconv.BATCH_RUNNING: float(job.sequences),
        }
        if isinstance(job.model, Transformer):
            exact, full = _attention_flops(job, count * job.tokens)
            values = {**values, semconv.ATTENTION_FLOP_EXACT: exact, semconv.ATTENTION_FLOP_FULL: full}
        if self.bus_bytes:
            values = {**values, semconv.COMM_BYTES: count * self.bus_bytes}
        amount = wire.whole(self.amount, count * job.tokens)
        return self.constants + windows.shared(number, utilizations) + doubles(values) + amount


def _attention_flops(job: Job, tokens: float) -> tuple[float, float]:
    """Attention's model FLOPs over `tokens`, exact and without a mask; 0 for models of images.

    Scores and values, forward and twice that backward; under a causal mask half of the pairs.
    """
    if not isinstance(job.model, Transformer):
        return 0.0, 0.0
    full = 12.0 * job.model.layers * job.model.hidden * job.seq * tokens
    return full * (job.seq + 1) / (2 * job.seq), full
