"""One request against a real HTTP server that answers in every way it may."""

import zlib

import pytest

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.export.destination import Destination
from mfu_sdk.export.otlp import MAX_RETRY_AFTER_S, Sender


def send(url, body=b"body", *, timeout_s=None, now_s=0.0, **settings):
    sender = Sender(Destination(f"{url}/v1/traces", **settings), lambda: now_s)
    return sender.send(sender.compress(body), timeout_s)


def test_delivered(collector):
    """The body arrives as protobuf with the user's headers, which may be percent-encoded."""
    outcome = send(collector.url, headers="authorization=Bearer%20key,X-Scope=one")
    assert outcome.kind == "delivered"
    (request,) = collector.requests
    assert (request.path, request.body) == ("/v1/traces", b"body")
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["content-type"] == "application/x-protobuf"
    assert (headers["authorization"], headers["x-scope"]) == ("Bearer key", "one")


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed(collector, compression):
    """Compression is what the header says, and undone gives the body."""
    send(collector.url, b"body" * 100, compression=compression)
    assert collector.requests[0].headers["Content-Encoding"] == compression
    assert len(collector.requests[0].body) < 100
    assert collector.bodies("/v1/traces") == [b"body" * 100]
    if compression == "deflate":
        assert zlib.decompress(collector.requests[0].body) == b"body" * 100


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, "delivered"), (202, "delivered"), (429, "retry"), (502, "retry"), (503, "retry"), (504, "retry")]
    + [(status, "rejected") for status in (301, 302, 400, 401, 404, 413, 500, 501)],
)
def test_statuses(collector, status, kind):
    """The statuses that the OTLP specification calls retryable are; a redirect is not followed."""
    collector.status = status
    assert send(collector.url).kind == kind
    assert len(collector.requests) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("-3", 0.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("86400", MAX_RETRY_AFTER_S),
        ("soon", None),
        ("nan", None),
        (None, None),
    ],
)
def test_retry_after(collector, header, seconds):
    """Retry-After is seconds or a date, within reason."""
    collector.script = [(503, header)]
    assert send(collector.url, now_s=10.0).retry_after_s == seconds


def test_refused(refused):
    """Nobody listening is a reason to try again, told in one line."""
    outcome = send(refused)
    assert (outcome.kind, outcome.retry_after_s) == ("retry", None)
    assert "refused" in outcome.detail


def test_hung(collector):
    """A collector that never answers costs no more than the time allowed."""
    collector.hung = True
    outcome = send(collector.url, timeout_s=0.05)
    assert outcome.kind == "retry"
    assert "timed out" in outcome.detail


def test_not_http(collector):
    """An answer that is no HTTP is tried again, not raised."""
    collector.status = 99
    assert send(collector.url).kind == "retry"


def test_certificates(tmp_path):
    """Certificates that cannot be read are refused before anything starts."""
    with pytest.raises(ConfigurationError, match=r"TLS for https://c.*must name readable PEM files"):
        send("https://c", certificate=str(tmp_path / "none.pem"))
    broken = tmp_path / "broken.pem"
    broken.write_text("not a certificate")
    with pytest.raises(ConfigurationError, match=r"OTEL_EXPORTER_OTLP_CERTIFICATE"):
        send("https://c", certificate=str(broken))


def test_mutual_tls(collector, loopback):
    """The variables' certificates are used: ours to trust the collector, the client's to be trusted by it."""
    certificate, key = loopback
    collector.speak_tls(certificate, key)
    trusted = {"certificate": str(certificate)}
    own = {"client_certificate": str(certificate), "client_key": str(key)}
    assert send(collector.url, **trusted, **own).kind == "delivered"
    assert "CERTIFICATE_VERIFY_FAILED" in send(collector.url, **own).detail
    assert send(collector.url, **trusted).kind == "retry"
    assert len(collector.requests) == 1
