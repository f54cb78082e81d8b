"""A handled request, its phases, and the load that it came under: the records of inference."""

from dataclasses import dataclass
from typing import Literal

from mfu_sdk.records import CountSource, Phase

Outcome = Literal["finished", "cancelled", "failed"]
"""`cancelled`: its caller left before the end (a generator was closed or dropped, a task cancelled)."""


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """One phase of a request: from the beginning of the first call of the model in it to the end of the last.

    `start_s` in seconds from the request's start. FLOPs are None where those of one call are not known.
    """

    phase: Phase
    start_s: float
    duration_s: float
    model_flops: int | None
    hardware_flops: int | None
    model_calls: int


@dataclass(frozen=True, slots=True)
class InferenceRecord:
    """One handled request. Requests overlap on a device, so they carry FLOPs and time but never enter fleet sums.

    `tokens` are all of them, `input_tokens` and `output_tokens` those that the caller told apart. `chunks` is what a
    generator yielded, None for a handler that is none. `time_to_first_token_s` runs from the request's start to the
    first chunk with a token in it, or, where nothing is streamed, to the end of the model's last call of the prompt.
    `time_per_output_token_s` is the mean over the tokens after the first one, without the time that the consumer of a
    stream took; where the caller gives no tokens it is that of the model's calls of one token each.
    """

    name: str
    start_unix_ns: int
    duration_s: float
    model_flops: int | None
    hardware_flops: int | None
    count_source: CountSource | None
    tokens: int | None
    batch: int | None
    model_calls: int
    error_type: str | None = None
    parent_trace_id: int | None = None
    parent_span_id: int | None = None
    outcome: Outcome = "finished"
    input_tokens: int | None = None
    output_tokens: int | None = None
    chunks: int | None = None
    time_to_first_token_s: float | None = None
    time_per_output_token_s: float | None = None
    phases: tuple[PhaseRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """What the server knows of its load, as `mfu.inference(load=…)` gives it; None for what it does not know.

    `batch_feasible`: sequences that would fit into one call of the model within memory and latency.
    `queue_waiting`: requests that wait to be begun. `kv_cache_free_ratio`: the free share of the key-value cache,
    0 to 1. `latency_target_s`: the time per output token that the service promises, in seconds.

    Raises `ValueError` for a value that cannot be.
    """

    batch_feasible: float | None = None
    queue_waiting: float | None = None
    kv_cache_free_ratio: float | None = None
    latency_target_s: float | None = None

    def __post_init__(self) -> None:
        for name, value, most in (
            ("batch_feasible", self.batch_feasible, None),
            ("queue_waiting", self.queue_waiting, None),
            ("kv_cache_free_ratio", self.kv_cache_free_ratio, 1.0),
            ("latency_target_s", self.latency_target_s, None),
        ):
            if value is not None and not (value >= 0 and (most is None or value <= most)):
                rule = "at least 0" if most is None else "between 0 and 1"
                raise ValueError(f"Load({name}={value!r}): must be {rule}; leave it out where it is not known")
