"""Every option that has an MFU_* variable, read once, validated, documented.

`OPTIONS` is the one table, and the reference page is made from it. Variables of the OpenTelemetry specification
(OTEL_EXPORTER_OTLP_*, OTEL_SDK_DISABLED, OTEL_RESOURCE_ATTRIBUTES, …) mean what that says: see `export.destination`.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from mfu_sdk.errors import ConfigurationError

Spans = Literal["auto", "all", "windows", "off"]
_SPANS: dict[str, Spans] = {"auto": "auto", "all": "all", "windows": "windows", "off": "off"}
Profiling = Literal["auto", "kernels", "off"]
_PROFILING: dict[str, Profiling] = {"auto": "auto", "kernels": "kernels", "off": "off"}
GenAi = Literal["off", "chat", "text_completion", "generate_content", "embeddings"]
_GEN_AI: dict[str, GenAi] = {
    "off": "off",
    "chat": "chat",
    "text_completion": "text_completion",
    "generate_content": "generate_content",
    "embeddings": "embeddings",
}
_SWITCH = {"1": True, "0": False, "true": True, "false": False}
_T = TypeVar("_T")
_Number = TypeVar("_Number", int, float)
_Rule = tuple[Callable[[float], bool], str]
_SHARE: _Rule = (lambda number: 0 < number < 1, "a number between 0 and 1")
_PORT: _Rule = (lambda number: 0 <= number <= 65535, "a number from 0 to 65535")
_ABOVE_ZERO: _Rule = (lambda number: 0 < number < math.inf, "a number above 0")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its variable, its default as one would write it, what it may be, and what it does."""

    variable: str
    default: str
    values: str
    brief: str


OPTIONS: tuple[Option, ...] = (
    Option("MFU_ENABLED", "1", "0 or 1", "0 makes every call of the SDK a no-op"),
    Option("MFU_GUARD", "log", "log or raise", "raise lets errors of the SDK itself through, for tests"),
    Option(
        "MFU_CALIBRATE",
        "auto",
        "auto or off",
        "off forbids measuring the peak when a monitor starts without a cached one",
    ),
    Option(
        "MFU_PROFILE",
        "auto",
        "auto, kernels or off",
        "what times the work of every eighth step, and of some calls of a handler's model, while that takes at most "
        "0.5 % of the run, for the waterfall's host gap and kernels. auto: operators one by one, on a processor, and "
        "on a GPU, once a second, whether its driver saw it idle; kernels: on a GPU its kernels too, by torch's "
        "profiler (which writes to standard error); off: nothing",
    ),
    Option(
        "MFU_LIVE",
        "0",
        "0 or 1",
        "1: a monitor shows its figures while it runs, in a line on the terminal: rank 0 does, and nothing in a pipe",
    ),
    Option(
        "MFU_DRIFT",
        "auto",
        "auto or off",
        "auto: tell when steps have become slower or faster than the run's own baseline; off: never",
    ),
    Option(
        "MFU_DRIFT_TOLERANCE",
        "0.02",
        "a number between 0 and 1",
        "the relative change of a run's speed that nobody is told of",
    ),
    Option(
        "MFU_DRIFT_ALARMS_PER_WEEK",
        "1",
        "a number above 0",
        "false alarms of drift that a fleet of MFU_DRIFT_STREAMS processes may have in a week, at most",
    ),
    Option("MFU_DRIFT_STREAMS", "1000", "a whole number above 0", "processes that share that budget"),
    Option(
        "MFU_CACHE_DIR",
        "the user's cache directory",
        "a directory",
        "where calibrations and the baselines of drift are kept",
    ),
    Option(
        "MFU_SPANS",
        "auto",
        "auto, all, windows or off",
        "auto: windows always, a span for every step while that is at most 2 a second, else 1 in N with the ratio "
        "on the span; all: every step; windows: no step spans; off: metrics and the run's span only",
    ),
    Option(
        "MFU_OVERHEAD_BUDGET",
        "0.5",
        "percent above 0, or off",
        "what telling may take of the steps' time: beyond it step spans are left out first, then windows where they "
        "alone take more, counters never",
    ),
    Option(
        "MFU_GEN_AI",
        "off",
        "off, chat, text_completion, generate_content or embeddings",
        "anything but off: requests also carry OpenTelemetry's `gen_ai.*` names (in development there), with this "
        "as `gen_ai.operation.name`",
    ),
    Option(
        "MFU_PROVIDER_ENDPOINT",
        "nothing is sent",
        "an http or https URL",
        "the provider's collector, which is sent aggregates only, beside the tenant's own that OTEL_* names",
    ),
    Option(
        "MFU_PROVIDER_PROTOCOL",
        "http/protobuf",
        "http/protobuf or grpc",
        "how it is spoken to; grpc needs the extra `mfu-sdk[grpc]`, and the endpoint then has no path",
    ),
    Option("MFU_PROVIDER_HEADERS", "none", "key=value,…, URL-encoded", "headers of every request to it: a token"),
    Option("MFU_PROVIDER_TIMEOUT", "10", "seconds above 0", "how long a request to it may take"),
    Option("MFU_PROVIDER_COMPRESSION", "gzip", "none, gzip or deflate", "how requests to it are compressed"),
    Option("MFU_PROVIDER_CERTIFICATE", "the system's", "a PEM file", "who may vouch for the provider"),
    Option("MFU_PROVIDER_CLIENT_CERTIFICATE", "none", "a PEM file", "the certificate that is shown to the provider"),
    Option("MFU_PROVIDER_CLIENT_KEY", "none", "a PEM file", "that certificate's key"),
    Option(
        "MFU_PROVIDER_MODEL_CLASS",
        "0",
        "0 or 1",
        "1: the provider is told what kind of model it is (`mfu.model.class`: llama, vit), to compare it with its like",
    ),
    Option(
        "MFU_PROMETHEUS_PORT",
        "0",
        "0 to 65535",
        "the port where Prometheus may scrape the run's metrics, one more for each local rank; 0: none. Needs the "
        "extra `mfu-sdk[prometheus]`",
    ),
    Option(
        "MFU_PROMETHEUS_HOST",
        "127.0.0.1",
        "an address of this machine",
        "where it listens; whoever reaches that can read the metrics",
    ),
    Option(
        "MFU_RECORDER",
        "on",
        "on or off",
        "on: where spans are sent, the last 8,192 steps also lie in a file that outlives a killed process, for "
        "`mfu replay`",
    ),
    Option("MFU_RECORDER_DIR", "the user's state directory", "a local directory", "where those files lie"),
    Option(
        "MFU_RUN_ID",
        "a new UUID, the same on all ranks and over torchrun's restarts",
        "a string",
        "the run's id, to join restarts and ranks",
    ),
    Option(
        "MFU_ALLOCATION_ID",
        "the pod's UID (POD_UID, k8s.pod.uid) or slurm-<job>",
        "a string",
        "what the scheduler calls what this process was given, for a provider that knows its allocations by it",
    ),
    Option(
        "MFU_RUN_ATTEMPT",
        "0, one more with each restart by torchrun",
        "a whole number",
        "how often the run was restarted",
    ),
)


@dataclass(frozen=True, slots=True)
class Provider:
    """Where the provider's collector is and how it is spoken to; as OpenTelemetry's variables of the same endings say.

    Raises `ConfigurationError` for a value that breaks its rule.
    """

    endpoint: str | None = None
    # Headers carry credentials; they must not appear in a log or a traceback.
    headers: str = field(default="", repr=False)
    timeout_s: float = 10.0
    compression: Literal["none", "gzip", "deflate"] = "gzip"
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    model_class: bool = False
    protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf"):
            raise ConfigurationError(
                f"MFU_PROVIDER_TIMEOUT={self.timeout_s:g}: must be above 0 seconds; unset it for 10"
            )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Provider":
        """As the environment has it."""
        timeout = env.get("MFU_PROVIDER_TIMEOUT") or "10"
        try:
            timeout_s = float(timeout)
        except ValueError:
            raise ConfigurationError(f"MFU_PROVIDER_TIMEOUT={timeout!r}: must be a number of seconds") from None
        return cls(
            endpoint=env.get("MFU_PROVIDER_ENDPOINT") or None,
            headers=env.get("MFU_PROVIDER_HEADERS") or "",
            timeout_s=timeout_s,
            compression=_one_of(
                env, "MFU_PROVIDER_COMPRESSION", "gzip", {"none": "none", "gzip": "gzip", "deflate": "deflate"}
            ),
            certificate=env.get("MFU_PROVIDER_CERTIFICATE") or None,
            client_certificate=env.get("MFU_PROVIDER_CLIENT_CERTIFICATE") or None,
            client_key=env.get("MFU_PROVIDER_CLIENT_KEY") or None,
            model_class=_one_of(env, "MFU_PROVIDER_MODEL_CLASS", "0", _SWITCH),
            protocol=_one_of(
                env, "MFU_PROVIDER_PROTOCOL", "http/protobuf", {"http/protobuf": "http/protobuf", "grpc": "grpc"}
            ),
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """The SDK's options. Raises `ConfigurationError` for a value that breaks its rule."""

    enabled: bool = True
    calibrate: Literal["auto", "off"] = "auto"
    profile: Profiling = "auto"
    live: bool = False
    drift: Literal["auto", "off"] = "auto"
    drift_tolerance: float = 0.02
    drift_alarms_per_week: float = 1.0
    drift_streams: int = 1000
    cache_dir: Path | None = None
    spans: Spans = "auto"
    overhead_budget: float | None = 0.005
    gen_ai: GenAi = "off"
    recorder: Literal["on", "off"] = "on"
    recorder_dir: Path | None = None
    provider: Provider = Provider()
    prometheus_port: int = 0
    prometheus_host: str = "127.0.0.1"
    run_id: str | None = None
    run_attempt: int | None = None
    allocation_id: str | None = None

    def __post_init__(self) -> None:
        if self.run_attempt is not None and self.run_attempt < 0:
            raise ConfigurationError(f"run_attempt={self.run_attempt}: must not be negative; use 0 for the first")
        for name, number, (holds, rule) in (
            ("drift_tolerance", self.drift_tolerance, _SHARE),
            ("drift_alarms_per_week", self.drift_alarms_per_week, _ABOVE_ZERO),
            ("drift_streams", self.drift_streams, _ABOVE_ZERO),
            ("prometheus_port", self.prometheus_port, _PORT),
        ):
            if not holds(number):
                raise ConfigurationError(f"{name}={number}: must be {rule}")
        for name, value, allowed in (
            ("calibrate", self.calibrate, ("auto", "off")),
            ("profile", self.profile, tuple(_PROFILING)),
            ("drift", self.drift, ("auto", "off")),
            ("spans", self.spans, ("auto", "all", "windows", "off")),
            ("gen_ai", self.gen_ai, tuple(_GEN_AI)),
            ("recorder", self.recorder, ("on", "off")),
        ):
            if value not in allowed:
                raise ConfigurationError(f"{name}={value!r}: must be one of {', '.join(allowed)}")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "Settings":
        """Settings as the environment gives them. Raises `ConfigurationError`, naming the variable."""
        env = os.environ if env is None else env
        attempt = env.get("MFU_RUN_ATTEMPT")
        # Read where it is used (`guard.shield`), because it must work before there are settings; checked here.
        _one_of(env, "MFU_GUARD", "log", {"log": "log", "raise": "raise"})
        if attempt is not None and not (attempt.isascii() and attempt.isdigit()):
            raise ConfigurationError(f"MFU_RUN_ATTEMPT={attempt!r}: must be a whole number; unset it for the usual")
        cache_dir, recorder_dir = env.get("MFU_CACHE_DIR"), env.get("MFU_RECORDER_DIR")
        return cls(
            enabled=_one_of(env, "MFU_ENABLED", "1", _SWITCH),
            calibrate=_one_of(env, "MFU_CALIBRATE", "auto", {"auto": "auto", "off": "off"}),
            profile=_one_of(env, "MFU_PROFILE", "auto", _PROFILING),
            live=_one_of(env, "MFU_LIVE", "0", _SWITCH),
            drift=_one_of(env, "MFU_DRIFT", "auto", {"auto": "auto", "off": "off"}),
            drift_tolerance=_number(env, "MFU_DRIFT_TOLERANCE", float, "0.02", _SHARE),
            drift_alarms_per_week=_number(env, "MFU_DRIFT_ALARMS_PER_WEEK", float, "1", _ABOVE_ZERO),
            drift_streams=_number(env, "MFU_DRIFT_STREAMS", int, "1000", _ABOVE_ZERO),
            cache_dir=Path(cache_dir).expanduser() if cache_dir else None,
            spans=_one_of(env, "MFU_SPANS", "auto", _SPANS),
            overhead_budget=_percent(env, "MFU_OVERHEAD_BUDGET", "0.5"),
            gen_ai=_one_of(env, "MFU_GEN_AI", "off", _GEN_AI),
            recorder=_one_of(env, "MFU_RECORDER", "on", {"on": "on", "off": "off"}),
            recorder_dir=Path(recorder_dir).expanduser() if recorder_dir else None,
            provider=Provider.from_env(env),
            prometheus_port=_number(env, "MFU_PROMETHEUS_PORT", int, "0", _PORT),
            prometheus_host=env.get("MFU_PROMETHEUS_HOST", "").strip() or "127.0.0.1",
            run_id=env.get("MFU_RUN_ID") or None,
            run_attempt=None if attempt is None else int(attempt),
            allocation_id=env.get("MFU_ALLOCATION_ID") or None,
        )

    def resolved_cache_dir(self, env: Mapping[str, str] | None = None) -> Path:
        """Where calibrations are kept: the option, else the platform's per-user cache directory."""
        return self.cache_dir or _of_user("XDG_CACHE_HOME", ".cache", env)

    def resolved_recorder_dir(self, env: Mapping[str, str] | None = None) -> Path:
        """Where flight recorders lie: the option, else the platform's per-user state directory."""
        return self.recorder_dir or _of_user("XDG_STATE_HOME", ".local/state", env)


def _percent(env: Mapping[str, str], variable: str, default: str) -> float | None:
    text = env.get(variable, "").strip().lower() or default
    if text == "off":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise ConfigurationError(f"{variable}={text!r}: must be a percentage above 0, or off; unset it for {default}")
    return value / 100


def _of_user(variable: str, otherwise: str, env: Mapping[str, str] | None) -> Path:
    """Our directory in one of the user's base directories (XDG Base Directory Specification, version 0.8)."""
    base = (os.environ if env is None else env).get(variable)
    return (Path(base) if base else Path.home() / otherwise) / "mfu_sdk"


def _one_of(env: Mapping[str, str], variable: str, default: str, allowed: Mapping[str, _T]) -> _T:
    value = env.get(variable, "").strip().lower() or default
    if value not in allowed:
        raise ConfigurationError(f"{variable}={value!r}: must be one of {', '.join(allowed)}; unset it for {default}")
    return allowed[value]


def _number(
    env: Mapping[str, str], variable: str, kind: Callable[[str], _Number], default: str, rule: _Rule
) -> _Number:
    value = env.get(variable, "").strip() or default
    holds, words = rule
    try:
        number = kind(value)
        if holds(number):
            return number
    except ValueError:
        pass
    whole = " and whole" if kind is int else ""
    raise ConfigurationError(f"{variable}={value!r}: must be {words}{whole}; unset it for {default}")
