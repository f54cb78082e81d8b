"""Where telemetry goes, and that it goes nowhere unasked."""

import itertools
import subprocess
import sys

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.export.destination import Destination, configured, delta_metrics, destination, metric_interval_s
from mfu_sdk.export.otlp import Sender

BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


def test_silence():
    """Without an endpoint nothing is sent: there is no default one."""
    assert not configured({})
    assert not configured({"OTEL_EXPORTER_OTLP_ENDPOINT": ""})


def test_base():
    """The base endpoint gets the signal's path, after whatever path it has."""
    assert destination("traces", BASE) == Destination("http://collector:4318/v1/traces")
    nested = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://gate/otlp/"}
    assert destination("metrics", nested) == Destination("https://gate/otlp/v1/metrics")


def test_own():
    """A signal's own endpoint is used as it is, and says nothing of the other signal."""
    env = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/in"}
    assert destination("traces", env) == Destination("http://collector:4318/in")
    assert destination("metrics", env) is None
    assert configured(env)


@pytest.mark.parametrize("value", ["true", "True", " TRUE "])
def test_disabled(value):
    """OTEL_SDK_DISABLED turns both signals off."""
    assert not configured(BASE | {"OTEL_SDK_DISABLED": value})


def test_none():
    """OTEL_TRACES_EXPORTER=none turns off that signal only."""
    env = BASE | {"OTEL_TRACES_EXPORTER": "none"}
    assert destination("traces", env) is None
    assert destination("metrics", env) is not None


@pytest.mark.parametrize(
    "value", ["collector:4317", "grpc://collector", "http://", "/v1/traces", "http://a:port", "http://[::1"]
)
def test_malformed(value):
    """An endpoint that is no URL is refused before anything starts, with the variable's name."""
    with pytest.raises(ConfigurationError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT=.*must be an http or https URL"):
        configured({"OTEL_EXPORTER_OTLP_ENDPOINT": value})


def test_unspoken(caplog):
    """A protocol that we do not speak turns the signal off with one warning that says what to set."""
    env = BASE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf"}
    assert destination("traces", env) is None
    assert destination("metrics", env) is not None
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf" in caplog.text


def test_numbers(caplog):
    """A number that is none gives the default and a warning, as the specification asks."""
    assert metric_interval_s({"OTEL_METRIC_EXPORT_INTERVAL": "1500"}) == 1.5
    assert metric_interval_s({"OTEL_METRIC_EXPORT_INTERVAL": "soon"}) == 60.0
    assert metric_interval_s({}) == 60.0
    assert "OTEL_METRIC_EXPORT_INTERVAL='soon'" in caplog.text


def test_temporality():
    """Running totals unless the environment asks for differences."""
    variable = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    assert [delta_metrics({variable: value}) for value in ("cumulative", "delta", "LowMemory")] == [False, True, True]
    assert not delta_metrics({})


def test_secret():
    """Headers carry credentials and are not in the repr."""
    where = destination("traces", BASE | {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20hunter2"})
    assert where is not None
    assert where.headers == "authorization=Bearer%20hunter2"
    assert "hunter2" not in repr(where)


def test_same_as_stock(monkeypatch):
    """The standard variables, general and specific, mean here what they mean to OpenTelemetry's own exporters."""
    values = {
        "ENDPOINT": ("http://a:1/x", "https://b:2/y/"),
        "HEADERS": ("k=v,Auth=Basic%20eA%3D%3D", "tenant = one"),
        "TIMEOUT": ("3", "0.5"),
        "COMPRESSION": ("gzip", "deflate"),
        "CERTIFICATE": ("/ca.pem", "/other.pem"),
        "CLIENT_CERTIFICATE": ("/c.pem", "/d.pem"),
        "CLIENT_KEY": ("/k.pem", "/l.pem"),
    }
    for general, specific in itertools.product((False, True), repeat=2):
        for name, (first, second) in values.items():
            for variable, value, wanted in (
                (f"OTEL_EXPORTER_OTLP_{name}", first, general or name == "ENDPOINT"),
                (f"OTEL_EXPORTER_OTLP_TRACES_{name}", second, specific),
                (f"OTEL_EXPORTER_OTLP_METRICS_{name}", second, specific),
            ):
                if wanted:
                    monkeypatch.setenv(variable, value)
                else:
                    monkeypatch.delenv(variable, raising=False)
        for signal, stock in (("traces", OTLPSpanExporter()), ("metrics", OTLPMetricExporter())):
            ours = destination(signal)
            assert ours is not None
            assert ours.url == stock._endpoint
            assert ours.timeout_s == stock._client._timeout
            assert ours.compression == stock._compression.value
            session = stock._client._transport._session
            assert (ours.certificate or True) == session.verify
            pair = (ours.client_certificate, ours.client_key)
            assert pair == (session.cert or (None, None))
            plain = Destination("http://a", headers=ours.headers)
            own = {name.lower(): value for name, value in Sender(plain, lambda: 0.0).headers.items()}
            theirs = {name.lower(): value for name, value in stock._client._headers.items()}
            for made in (own, theirs):
                made.pop("user-agent")
                made.pop("content-encoding", None)
            assert own == theirs


def test_light():
    """Whether anything is configured can be asked without loading OpenTelemetry, torch or an HTTP client."""
    program = (
        "import sys; from mfu_sdk.export.destination import configured; assert not configured({}); "
        "print([m for m in ('opentelemetry', 'torch', 'http.client', 'ssl') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=300).strip() == "[]"
