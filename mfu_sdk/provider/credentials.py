"""Who may send and read: the tokens file, and what holds without one.

With a file, a token says who its bearer is and loopback is no privilege. Without one, only clients on loopback are
served, as tenant "local". The file is read again when it changes; a change that breaks it is logged and the last good
one stays in force, so that a slip of an editor neither opens the door nor shuts everybody out.
"""

import hashlib
import hmac
import ipaddress
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import yaml

from mfu_sdk.errors import ConfigurationError

log: Final = logging.getLogger("mfu_sdk")

PROVIDER: Final = "provider:"
"""What the names of the provider's own collectors begin with, in the store and nowhere else: no tenant may have it."""

_REMEDY: Final = "see docs/how-to/provider.md for its form"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is: a tenant, who sends and reads as itself; an operator, who reads everything and sends nothing;
    or a collector of the provider's own, which sends metrics of its hardware and reads nothing.
    """

    name: str
    operator: bool = False

    @property
    def provider(self) -> bool:
        """Whether it is the provider's own collector: what it says of the hardware is no tenant's word."""
        return self.name.startswith(PROVIDER)


LOCAL: Final = Identity("local")
"""Whom clients on loopback are served as where there is no tokens file."""


@dataclass(frozen=True, slots=True)
class _Token:
    digest: bytes
    identity: Identity
    until_unix_s: float | None


class Credentials:
    """The tokens of `path`, or the rule for loopback where it is None.

    Raises `ConfigurationError` when the file cannot be read or breaks its form. `clock` gives seconds since 1970.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = None if path is None else _state(path)
        self._tokens = () if path is None else _load(path)

    def identify(self, token: str | None, client_host: str | None) -> Identity | None:
        """Who bears `token`, or calls from `client_host` where no tokens are kept; None: nobody that is known."""
        if self.path is None:
            return LOCAL if is_loopback(client_host) else None
        self._reload(self.path)
        if token is None:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        # Every token is compared, each in constant time: how long the answer takes tells nothing about any of them.
        for known in self._tokens:
            if hmac.compare_digest(known.digest, digest):
                found = known
        if found is None or (found.until_unix_s is not None and self._clock() >= found.until_unix_s):
            return None
        return found.identity

    def _reload(self, path: Path) -> None:
        with self._lock:
            state = _state(path)
            if state == self._seen:
                return
            self._seen = state
            try:
                self._tokens = _load(path)
            except ConfigurationError as error:
                log.warning("mfu_sdk: the tokens file changed and is left out, the last good one holds: %s", error)


def is_loopback(host: str | None) -> bool:
    """Whether `host`, an address or "localhost", is this machine speaking to itself."""
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load(path: Path) -> tuple[_Token, ...]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: the tokens file cannot be read ({error}); name a readable file") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{path}: the tokens file is not YAML ({reason}); {_REMEDY}") from error
    if not isinstance(content, dict) or not content or not set(content) <= {"tenants", "operators", "providers"}:
        raise ConfigurationError(f"{path}: must map `tenants`, `operators`, `providers`, and nothing else; {_REMEDY}")
    tokens: list[_Token] = []
    for section in ("tenants", "operators", "providers"):
        names = content.get(section) or {}
        if not isinstance(names, dict):
            raise ConfigurationError(f"{path}: `{section}` must map names to lists of tokens; {_REMEDY}")
        for name, entries in names.items():
            where = f"{path}: {section}.{name}"
            if not isinstance(name, str) or not name:
                raise ConfigurationError(f"{where}: a name must be a string that is not empty; put it in quotes")
            if name.startswith(PROVIDER):
                raise ConfigurationError(f"{where}: {PROVIDER!r} begins names of `providers` only; give another name")
            if not isinstance(entries, list) or not entries:
                raise ConfigurationError(f"{where}: must be a list of tokens, `- token: …`; {_REMEDY}")
            bearer = Identity(f"{PROVIDER}{name}" if section == "providers" else name, section == "operators")
            tokens += [_token(where, entry, bearer) for entry in entries]
    bearers: dict[bytes, Identity] = {}
    for token in tokens:
        if bearers.setdefault(token.digest, token.identity) != token.identity:
            both = f"{bearers[token.digest].name} and {token.identity.name}"
            raise ConfigurationError(f"{path}: {both} hold the same token; give each one of its own")
    return tuple(tokens)


def _token(where: str, entry: Any, identity: Identity) -> _Token:
    if not isinstance(entry, dict) or "token" not in entry or not set(entry) <= {"token", "until"}:
        raise ConfigurationError(f"{where}: each token needs `token` and may have `until`; {_REMEDY}")
    text = entry["token"]
    if not isinstance(text, str) or not text:
        raise ConfigurationError(f"{where}: a token must be a string that is not empty; put it in quotes")
    if text.startswith("sha256:"):
        try:
            digest = bytes.fromhex(text.removeprefix("sha256:"))
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise ConfigurationError(f"{where}: sha256: must be followed by 64 hexadecimal digits; use `sha256sum`")
    else:
        digest = hashlib.sha256(text.encode()).digest()
    return _Token(digest, identity, _until(where, entry.get("until")))


def _until(where: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, date):
        # Exclusive, like every `until` of ours: the token's last moment is the end of the day before.
        return datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()
    raise ConfigurationError(f"{where}: until={value!r} must be a date or a time of ISO 8601, such as 2027-01-01")
