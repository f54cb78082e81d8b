"""Where telemetry goes: the tenant's own collector and the provider's, each if it is named; this loads nothing heavy.

The tenant's is the one that the variables of the OTLP exporter specification name
(https://opentelemetry.io/docs/specs/otel/protocol/exporter/): the signal's own before the general one, empty meaning
unset. The provider's is named by variables of ours with the same endings. There is no default endpoint: nothing is sent
to anyone whom the environment does not name.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, cast
from urllib.parse import urlsplit

from mfu_sdk import guard
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.settings import Provider

Signal = Literal["traces", "metrics"]
Compression = Literal["none", "gzip", "deflate"]

TENANT: Final = "OTEL_EXPORTER_OTLP_"
PROVIDER: Final = "MFU_PROVIDER_"

_DEFAULT_TIMEOUT_S = 10.0
_DEFAULT_METRIC_INTERVAL_MS = 60_000.0


@dataclass(frozen=True, slots=True)
class Destination:
    """One signal's collector: `url` is complete, `headers` are as written in the variable, paths are PEM files."""

    url: str
    # Headers carry credentials; they must not appear in a log or a traceback.
    headers: str = field(default="", repr=False)
    timeout_s: float = _DEFAULT_TIMEOUT_S
    compression: Compression = "none"
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    # What the variables begin with that named it.
    prefix: str = TENANT


def configured(env: Mapping[str, str] | None = None, provider: Provider = Provider()) -> bool:  # noqa: B008 - frozen
    """Whether any signal has somewhere to go. Raises `ConfigurationError` for an endpoint that is not a URL."""
    signals: tuple[Signal, ...] = ("traces", "metrics")
    return any(destination(each, env) or of_provider(each, provider, env) for each in signals)


def of_provider(signal: Signal, provider: Provider, env: Mapping[str, str] | None = None) -> Destination | None:
    """Where `signal` goes for the provider, None where no endpoint is named or OTEL_SDK_DISABLED stops everything.

    Raises `ConfigurationError` for an endpoint that is not a URL.
    """
    env = os.environ if env is None else env
    if provider.endpoint is None or _disabled(env):
        return None
    if not _is_url(provider.endpoint):
        raise ConfigurationError(
            f"MFU_PROVIDER_ENDPOINT={provider.endpoint!r}: must be an http or https URL; "
            "write it like https://mfu.example.org"
        )
    return Destination(
        url=f"{provider.endpoint.removesuffix('/')}/v1/{signal}",
        headers=provider.headers,
        timeout_s=provider.timeout_s,
        compression=provider.compression,
        certificate=provider.certificate,
        client_certificate=provider.client_certificate,
        client_key=provider.client_key,
        prefix=PROVIDER,
    )


def destination(signal: Signal, env: Mapping[str, str] | None = None) -> Destination | None:
    """Where `signal` goes, or None if the environment names no endpoint for it or turns it off.

    A timeout is in seconds, as everywhere in OpenTelemetry Python, though the specification's unit is a millisecond:
    one variable must not mean two things in one process. Raises `ConfigurationError` for an endpoint that is not a
    URL; a protocol that we do not speak is warned of and turns the signal off, because whoever set it for a whole
    platform did not mean to stop this program.
    """
    env = os.environ if env is None else env
    if _disabled(env):
        return None
    if env.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower() == "none":
        return None
    own = env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    base = env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    url = own or (f"{base.removesuffix('/')}/v1/{signal}" if base else None)
    if url is None:
        return None
    variable = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT" if own else "OTEL_EXPORTER_OTLP_ENDPOINT"
    if not _is_url(own or base or ""):
        raise ConfigurationError(
            f"{variable}={own or base!r}: must be an http or https URL; write it like http://collector:4318"
        )
    protocol = _either(env, signal, "PROTOCOL") or "http/protobuf"
    if protocol.strip().lower() != "http/protobuf":
        guard.warn_once(
            "export",
            f"{signal} are not sent: OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r} is not spoken here; "
            f"set OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL=http/protobuf and the endpoint's HTTP port (4318)",
        )
        return None
    return Destination(
        url=url,
        headers=_either(env, signal, "HEADERS") or "",
        timeout_s=_positive(env, signal, "TIMEOUT", _DEFAULT_TIMEOUT_S),
        compression=_compression(env, signal),
        certificate=_either(env, signal, "CERTIFICATE"),
        client_certificate=_either(env, signal, "CLIENT_CERTIFICATE"),
        client_key=_either(env, signal, "CLIENT_KEY"),
    )


def for_replay(url: str | None, provider: Provider, env: Mapping[str, str] | None = None) -> Destination:
    """Where `mfu replay` sends spans: to the base `url`, else to the provider's collector, else to the tenant's.

    With a `url`, headers, TLS and compression are the provider's where any of its variables is set, else the tenant's.
    Raises `ConfigurationError` where nothing names a collector.
    """
    env = os.environ if env is None else env
    found = None
    if url is None:
        found = of_provider("traces", provider, env) or destination("traces", env)
    elif not _is_url(url):
        raise ConfigurationError(f"--otlp {url!r}: must be an http or https URL; write it like http://collector:4318")
    else:
        # What turns a run's own telemetry off does not turn off what somebody asks for.
        off = ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        env = {name: value for name, value in env.items() if name not in off} | {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
        if provider != Provider():
            found = of_provider("traces", replace(provider, endpoint=url), env)
        else:
            found = destination("traces", env)
    if found is None:
        raise ConfigurationError(
            "mfu replay: no collector is named; give --otlp URL or set MFU_PROVIDER_ENDPOINT or "
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    return found


def metric_interval_s(env: Mapping[str, str] | None = None) -> float:
    """Seconds between two exports of metrics: OTEL_METRIC_EXPORT_INTERVAL, which is in milliseconds, else 60 s."""
    env = os.environ if env is None else env
    variable = "OTEL_METRIC_EXPORT_INTERVAL"
    return _number(variable, env.get(variable), _DEFAULT_METRIC_INTERVAL_MS) / 1000


def delta_metrics(env: Mapping[str, str] | None = None) -> bool:
    """Whether counters and histograms are sent as differences (`delta`, `lowmemory`) and not as running totals."""
    env = os.environ if env is None else env
    wanted = env.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").strip().lower()
    return wanted in ("delta", "lowmemory")


def _disabled(env: Mapping[str, str]) -> bool:
    return env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # Reading the port is what checks it.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _either(env: Mapping[str, str], signal: Signal, name: str) -> str | None:
    return env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}") or env.get(f"OTEL_EXPORTER_OTLP_{name}") or None


def _positive(env: Mapping[str, str], signal: Signal, name: str, default: float) -> float:
    return _number(f"OTEL_EXPORTER_OTLP_{name}", _either(env, signal, name), default)


def _number(variable: str, text: str | None, default: float) -> float:
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    # The specification asks for a warning and the default, not an error, where a standard number is malformed.
    if not 0 < value < float("inf"):
        guard.warn_once("export", f"{variable}={text!r} is not a positive number; {default:g} is used")
        return default
    return value


def _compression(env: Mapping[str, str], signal: Signal) -> Compression:
    wanted = (_either(env, signal, "COMPRESSION") or "none").strip().lower()
    if wanted not in ("none", "gzip", "deflate"):
        guard.warn_once(
            "export", f"OTEL_EXPORTER_OTLP_COMPRESSION={wanted!r} is not none, gzip or deflate; none is used"
        )
        return "none"
    return cast(Compression, wanted)
