"""The tokens file: whom it knows, until when, and how a bad one is refused."""

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.credentials import LOCAL, Credentials, Identity, is_loopback

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()


def tokens(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tokens.yaml"
    path.write_text(text)
    return path


def test_plain_and_hashed(tmp_path: Path) -> None:
    """A token is known by itself or by its SHA-256; several may name one tenant; an operator is told apart."""
    digest = hashlib.sha256(b"second").hexdigest()
    path = tokens(
        tmp_path,
        f"""
        tenants: {{acme: [{{token: first}}, {{token: "sha256:{digest}"}}]}}
        operators: {{ops: [{{token: third}}]}}
        """,
    )
    known = Credentials(path, lambda: NOON)
    assert known.identify("first", "10.0.0.1") == Identity("acme")
    assert known.identify("second", None) == Identity("acme")
    assert known.identify("third", None) == Identity("ops", operator=True)
    # The hash is no password.
    assert known.identify(f"sha256:{digest}", None) is None
    assert known.identify("", None) is None
    assert known.identify(None, "10.0.0.1") is None


def test_loopback_is_no_privilege(tmp_path: Path) -> None:
    """With a tokens file a client on loopback is nobody without a token."""
    known = Credentials(tokens(tmp_path, "tenants: {acme: [{token: t}]}"))
    assert known.identify(None, "127.0.0.1") is None


def test_without_a_file() -> None:
    """Without a tokens file only loopback is served, as tenant "local", whatever token it sends."""
    known = Credentials()
    assert known.identify(None, "127.0.0.1") == LOCAL == Identity("local")
    assert known.identify("anything", "::1") == LOCAL
    assert known.identify(None, "10.0.0.1") is None
    assert known.identify(None, None) is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
        (None, False),
    ],
)
def test_loopback(host: str | None, expected: bool) -> None:
    """Only this machine speaking to itself is loopback; an address that listens on everything is not."""
    assert is_loopback(host) is expected


@pytest.mark.parametrize("until", ["2026-11-23", "2026-11-23T12:00:00Z", "2026-11-23T13:00:00+01:00"])
def test_until_is_exclusive(tmp_path: Path, until: str) -> None:
    """A token is known before `until` and no longer from then on; a date means its midnight in UTC."""
    end = NOON if "T" in until else NOON - 12 * 3600
    now = [end - 1.0]
    known = Credentials(tokens(tmp_path, f"tenants: {{acme: [{{token: t, until: {until}}}]}}"), lambda: now[0])
    assert known.identify("t", None) == Identity("acme")
    now[0] = end
    assert known.identify("t", None) is None


def test_reread_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A changed file holds at once; one that became bad, or is gone, is logged and the last good one holds."""
    path = tokens(tmp_path, "tenants: {acme: [{token: old}]}")
    known = Credentials(path)
    path.write_text("tenants: {globex: [{token: new!}]}")
    assert known.identify("old", None) is None
    assert known.identify("new!", None) == Identity("globex")
    path.write_text("tenants: [")
    assert known.identify("new!", None) == Identity("globex")
    assert "the last good one holds" in caplog.text
    path.unlink()
    assert known.identify("new!", None) == Identity("globex")
    path.write_text("tenants: {acme: [{token: back}]}")
    os.utime(path, ns=(1, 1))
    assert known.identify("back", None) == Identity("acme")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must map `tenants`, `operators`, `providers`, and nothing else"),
        ("[1]", "must map `tenants`, `operators`"),
        ("tenants: {a: [{token: t}]}\nadmins: {}", "and nothing else"),
        ("tenants: [a]", "`tenants` must map names to lists of tokens"),
        ("tenants: {1: [{token: t}]}", r"tenants\.1: a name must be a string that is not empty"),
        ("tenants: {'': [{token: t}]}", "a name must be a string that is not empty"),
        ("tenants: {a: {token: t}}", r"tenants\.a: must be a list of tokens"),
        ("tenants: {a: []}", "must be a list of tokens"),
        ("tenants: {a: [t]}", "each token needs `token` and may have `until`"),
        ("tenants: {a: [{token: t, from: 2026-01-01}]}", "each token needs `token` and may have `until`"),
        ("tenants: {a: [{token: 123}]}", "a token must be a string that is not empty; put it in quotes"),
        ("tenants: {a: [{token: ''}]}", "a token must be a string that is not empty"),
        ("tenants: {a: [{token: 'sha256:abc'}]}", "must be followed by 64 hexadecimal digits"),
        ("tenants: {a: [{token: t, until: soon}]}", "until='soon' must be a date or a time of ISO 8601"),
        ("tenants: {a: [{token: t}], b: [{token: t}]}", "a and b hold the same token; give each one of its own"),
        ("tenants: {a: [{token: t}]}\noperators: {a: [{token: t}]}", "a and a hold the same token"),
        ("tenants: {", "the tokens file is not YAML"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, message: str) -> None:
    """A file that breaks its form is refused in one line, which never shows a token."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        Credentials(tokens(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_form_is_where_errors_say(tmp_path: Path) -> None:
    """An error that leaves the form to a page names one that is there, and the page's example is a good file."""
    with pytest.raises(ConfigurationError, match=r"; see docs/how-to/provider\.md for its form$"):
        Credentials(tokens(tmp_path, "[]"))
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "provider.md").read_text("utf-8")
    example = page.split("```yaml\n")[1].split("```")[0]
    known = Credentials(tokens(tmp_path, example), lambda: NOON)
    assert known.identify("correct-horse-battery-staple", None) == Identity("initech")


def test_missing_file(tmp_path: Path) -> None:
    """A file that cannot be read is refused."""
    with pytest.raises(ConfigurationError, match=r"none\.yaml: the tokens file cannot be read"):
        Credentials(tmp_path / "none.yaml")


def test_a_providers_collector(tmp_path: Path) -> None:
    """A token of `providers` is told from every tenant's by a name that no tenant may have."""
    path = tokens(tmp_path, "tenants: {dcgm: [{token: t}]}\nproviders: {dcgm: [{token: p}]}")
    known = Credentials(path)
    collector, tenant = known.identify("p", None), known.identify("t", None)
    assert collector == Identity("provider:dcgm")
    assert tenant == Identity("dcgm")
    assert collector is not None
    assert tenant is not None
    assert (collector.provider, collector.operator, tenant.provider) == (True, False, False)
    for section in ("tenants", "operators", "providers"):
        path.write_text(f"{section}: {{'provider:x': [{{token: t}}]}}")
        with pytest.raises(ConfigurationError, match="begins names of `providers` only"):
            Credentials(path)
