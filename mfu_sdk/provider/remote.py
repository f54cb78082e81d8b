"""A ClickHouse server over its HTTP interface (clickhouse.com/docs/interfaces/http), which others may write to as well.

Plain HTTP through urllib3: what is sent is SQL and bytes in ClickHouse's own formats, and what comes back is too, so a
client that knows columns and types would have nothing to do here.

An insert is acknowledged once the server has answered it. Where the answer is lost it is sent again under the same
`insert_deduplication_token`, by which the server knows what it has. Requests are taken apart in this process, by chDB
in memory: a server needs no schema of protobuf and no tables in its memory, and only rows travel.
"""

import os
import re
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Final
from urllib.parse import unquote, urlencode, urlsplit

import urllib3

from mfu_sdk.errors import ConfigurationError, StoreAwayError, StoreError
from mfu_sdk.provider.embedded import Embedded
from mfu_sdk.provider.engine import SETTINGS, Apart, ArrayText, Engine, Move, Parameter, QueryError, Row, text_of

USER: Final = "CLICKHOUSE_USER"
PASSWORD: Final = "CLICKHOUSE_PASSWORD"  # noqa: S105  # the variable's name
"""ClickHouse's own client reads the same variables."""

_PORTS: Final = {"http": 8123, "https": 8443}
_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 120.0
_TRIES: Final = 3
_PAUSE_S: Final = 0.2
# A server takes 128 KiB in a parameter and 256 KiB of SQL unless told otherwise, and proxies less in an address.
_IN_ADDRESS: Final = 4096
_IN_QUERY: Final = 200_000
_CODE: Final = "X-ClickHouse-Exception-Code"
_NOT_YOURS: Final = {"192", "193", "194", "497", "516"}
"""Codes of ClickHouse for users that it does not know, passwords that are wrong, and rights that are missing."""

_AS_TEXT: Final = "SELECT toString(groupUniqArray(TraceId)) AS traces FROM ($traces)"

_LOCKED: Final = "57"
"""Its code for a table that is there already."""

_WAITS: Final = 300
_PLAIN: Final = str.maketrans("", "", "\\'")
_LOCK_S: Final = 1800
"""A lock that is older than this belongs to nobody: no migration takes as long."""

_SETTINGS: Final = {
    **SETTINGS,
    # A mistake is told by the status, before any of the answer, and what is answered is whole.
    "wait_end_of_query": "1",
    "async_insert": "0",
    "distributed_foreground_insert": "1",
    # On one shard a window replaces steps of another.
    "distributed_product_mode": "global",
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a ClickHouse server answers HTTP, and as whom it is asked."""

    url: str
    user: str = "default"
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.url


def parse_address(url: str, environment: Mapping[str, str] = os.environ) -> Address:
    """``http[s]://[USER[:PASSWORD]@]HOST[:PORT]``; what the URL leaves out may stand in the environment.

    Raises `ConfigurationError`, without a word of the credentials.
    """
    try:
        found = urlsplit(url)
        port = found.port
    except ValueError:
        found, port = urlsplit(""), None
    if found.scheme not in _PORTS or not found.hostname or found.path not in ("", "/") or found.query or found.fragment:
        raise ConfigurationError(
            "--clickhouse: must be http[s]://[USER[:PASSWORD]@]HOST[:PORT] and no more; the database is otel"
        )
    host = f"[{found.hostname}]" if ":" in found.hostname else found.hostname
    user = unquote(found.username) if found.username else environment.get(USER, "default")
    password = environment.get(PASSWORD, "") if found.password is None else unquote(found.password)
    return Address(f"{found.scheme}://{host}:{port or _PORTS[found.scheme]}", user, password)


class Remote(Engine):
    """A ClickHouse server. Lines to it share connections, and any number of threads may use one."""

    shared: ClassVar[bool] = True
    remedy: ClassVar[str] = "check the address, the user's rights, and that the server is of version 25.8 or later"

    def __init__(self, address: Address) -> None:
        self.name = address.url
        self._url = address.url
        self._pool = urllib3.PoolManager(
            maxsize=8,
            headers={
                "X-ClickHouse-User": address.user,
                "X-ClickHouse-Key": address.password,
                "User-Agent": "mfu-sdk",
                "Accept-Encoding": "gzip",
            },
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=_ANSWER_S),
            # What was sent may have been done: only what never left is sent again unasked.
            retries=urllib3.Retry(connect=1, read=0, redirect=0, status=0, other=0, backoff_factor=_PAUSE_S),
        )
        self._apart: list[_Here] = []
        self._closing = threading.Event()

    def fetch(self, sql: str, form: str, parameters: Mapping[str, Parameter]) -> bytes:
        """See `Engine`."""
        asked = {"default_format": form, "insert_deduplicate": "0", "enable_http_compression": "1"}
        for name, value in parameters.items():
            text = text_of(value)
            if isinstance(value, ArrayText) or (len(text) > _IN_ADDRESS and not isinstance(value, str)):
                sql = _written_in(sql, name, text)
            else:
                asked[f"param_{name}"] = text
        body = sql.encode()
        if len(body) > _IN_QUERY:
            asked["max_query_size"] = str(2 * len(body))
        try:
            return self._send(asked, body)
        except _RefusedError as refused:
            raise QueryError(f"{self.name} refused a query ({refused}); {refused.remedy}") from None

    def insert(self, into: str, form: str, data: bytes) -> None:
        """See `Engine`."""
        asked = {
            "query": f"{into} FORMAT {form}",
            "insert_deduplicate": "1",
            "deduplicate_blocks_in_dependent_materialized_views": "1",
            "insert_deduplication_token": uuid.uuid4().hex,
        }
        for tried in range(1, _TRIES + 1):
            try:
                self._send(asked, data)
            except _RefusedError as refused:
                raise StoreError(f"{self.name} took no rows ({refused}); {refused.remedy}") from None
            except StoreAwayError:
                if tried == _TRIES:
                    raise
                self._closing.wait(_PAUSE_S)
            else:
                return

    def add(self, table: str, names: str, rows: bytes) -> None:
        """See `Engine`."""
        self.insert(f"INSERT INTO otel.{table} ({names})", "JSONEachRow", rows)

    def another(self) -> "Remote":
        """See `Engine`."""
        return self

    def apart(self) -> Apart:
        """See `Engine`: in this process."""
        here = _Here(self)
        self._apart.append(here)
        return here

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See `Engine`: a table is the lock, since a server makes it once only and drops it with nobody's process."""
        for _ in range(_WAITS):
            if self._locked():
                break
            self._closing.wait(_PAUSE_S)
        else:
            raise StoreError(
                f"{self.name}: another `mfu serve` is changing the schema; wait, or drop otel.mfu_lock if none is"
            )
        try:
            yield
        finally:
            self.query("DROP TABLE IF EXISTS otel.mfu_lock")

    def close(self) -> None:
        """See `Engine`."""
        self._closing.set()
        for here in self._apart:
            here.close()
        self._pool.clear()

    def _locked(self) -> bool:
        ours = f"{socket.gethostname()} {os.getpid()}".translate(_PLAIN)
        try:
            self.query(f"CREATE TABLE otel.mfu_lock (x UInt8) ENGINE = Memory COMMENT '{ours}'")
        except QueryError as error:
            if f"code {_LOCKED}:" not in str(error):
                raise
            held = self.query(
                "SELECT comment, metadata_modification_time < now() - {lock_s:UInt32} AS is_old"
                " FROM system.tables WHERE database = 'otel' AND name = 'mfu_lock'",
                {"lock_s": _LOCK_S},
            )
            if held and (held[0]["is_old"] or _left_behind(held[0]["comment"], ours)):
                self.query("DROP TABLE IF EXISTS otel.mfu_lock")
            return False
        return True

    def _send(self, asked: Mapping[str, str], body: bytes) -> bytes:
        """What the server answers. Raises `_RefusedError` where it says no, `StoreAwayError` where it says nothing."""
        try:
            answer = self._pool.request("POST", f"{self._url}/?{urlencode(_SETTINGS | dict(asked))}", body=body)
        except urllib3.exceptions.HTTPError as error:
            raise StoreAwayError(
                f"{self.name} does not answer ({_cause(error)}); is ClickHouse running there?"
            ) from None
        code = answer.headers.get(_CODE)
        if answer.status == 200 and code is None:
            return answer.data
        said = " ".join(answer.data[:2000].decode("utf-8", "replace").split())[:300]
        if code is None:
            # Whatever stands before the server speaks for it.
            raise StoreAwayError(f"{self.name} answered {answer.status} ({said}); is that ClickHouse's HTTP address?")
        raise _RefusedError(code, said)


class _RefusedError(Exception):
    def __init__(self, code: str, said: str) -> None:
        super().__init__(f"code {code}: {said}")
        self.remedy = (
            f"check the user, the password and its rights ({USER}, {PASSWORD})"
            if code in _NOT_YOURS
            else "see the server's log"
        )


class _Here(Apart):
    """Takes requests apart in chDB's memory, and sends the server rows."""

    def __init__(self, server: Remote) -> None:
        self._server = server
        self._memory = Embedded.memory()
        self._memory.query("CREATE TEMPORARY TABLE stored_already (tenant String, TraceId String, SpanId String)")

    def query(self, sql: str, parameters: Mapping[str, Parameter] | None = None) -> list[Row]:
        """See `Apart`."""
        return self._memory.query(sql, parameters)

    def insert(self, into: str, form: str, data: bytes) -> None:
        """See `Apart`."""
        self._memory.insert(into, form, data)

    def store(self, move: Move, parameters: Mapping[str, Parameter]) -> None:
        """See `Apart`."""
        [row] = self.query(_AS_TEXT.replace("$traces", move.traces), parameters)
        known = self._server.fetch(
            move.known.replace("$traces", "{traces:Array(String)}"),
            "RowBinary",
            {**parameters, "traces": ArrayText(row["traces"])},
        )
        self.query("TRUNCATE TABLE stored_already")
        if known:
            self.insert("INSERT INTO stored_already", "RowBinary", known)
        # Of all formats the one whose bytes mean the same to every version.
        rows = self._memory.fetch(
            move.rows.replace("$known", "SELECT tenant, TraceId, SpanId FROM stored_already"), "RowBinary", parameters
        )
        if rows:
            self._server.insert(move.into, "RowBinary", rows)

    def close(self) -> None:
        """End it."""
        self._memory.close()


def _left_behind(theirs: str, ours: str) -> bool:
    """Whether a lock is of a process of this machine that is no more."""
    host, _, pid = theirs.rpartition(" ")
    if host != ours.rpartition(" ")[0] or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _written_in(sql: str, name: str, text: str) -> str:
    """`sql` with the array `text` where its parameter stood; an array's items are escaped the same way in both."""
    return re.sub(rf"\{{{name}:([^}}]+)\}}", lambda found: f"CAST({text}, '{found[1]}')", sql)


def _cause(error: Exception) -> str:
    """What happened, without the address and its parameters."""
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split(": ")[-1].split())[:200]
