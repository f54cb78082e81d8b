"""chDB: ClickHouse's engine in this process, over a directory that it owns, or over none and in memory alone."""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, ClassVar, Final

from mfu_sdk.errors import MissingDependencyError, StoreError
from mfu_sdk.provider.engine import SETTINGS, Apart, Engine, Move, Parameter, QueryError, one_line, text_of

# What a store's directory holds: the engine's files, and the lock that says which process owns them.
_ENGINE: Final = "clickhouse"
_LOCK: Final = "owner.lock"
_MEMORY: Final = ":memory:"


class Embedded(Engine, Apart):
    """A session with chDB. `Embedded.open` takes a directory, of which a process holds one; `Embedded.memory` none."""

    shared: ClassVar[bool] = False
    remedy: ClassVar[str] = "name another directory or restore it"

    def __init__(self, name: str, place: str, lock_file: IO[bytes] | None = None) -> None:
        self.name = name
        self._place = place
        self._lock_file = lock_file
        self._others: list[Embedded] = []
        # Tables that have one in memory (`_staged`).
        self._stages: set[str] = set()
        self._session: Any = _session(name, place)
        for setting, value in SETTINGS.items():
            self.query(f"SET {setting} = '{value}'")

    @classmethod
    def open(cls, path: Path) -> "Embedded":
        """The engine over `path`, a directory that is made if need be.

        Raises `StoreError` when the directory cannot be used or is held by another process, and
        `MissingDependencyError` without the extra `provider`.
        """
        lock_file = _own(path)
        try:
            return cls(str(path), str(path / _ENGINE), lock_file)
        except QueryError as error:
            lock_file.close()
            raise StoreError(f"{path}: not a readable store ({error}); {cls.remedy}") from error
        except BaseException:
            lock_file.close()
            raise

    @classmethod
    def memory(cls) -> "Embedded":
        """The engine over nothing: what it holds is gone with it."""
        return cls("chDB in memory", _MEMORY)

    def fetch(self, sql: str, form: str, parameters: Mapping[str, Parameter]) -> bytes:
        """See `Engine`."""
        values = {name: text_of(value) for name, value in parameters.items()}
        try:
            return bytes(self._session.query(sql, form, params=values or None).bytes())
        except RuntimeError as error:
            raise QueryError(f"the store refused a query ({one_line(error)}); check the disk and the query") from error

    def insert(self, into: str, form: str, data: bytes) -> None:
        """See `Engine`."""
        try:
            with self._session.send_insert(into, form) as inserter:
                inserter.append(data)
                inserter.finish()
        except (RuntimeError, UnicodeDecodeError) as error:
            raise StoreError(f"{self.name}: took no rows ({one_line(error)}); check the disk") from error

    def add(self, table: str, names: str, rows: bytes) -> None:
        """See `Engine`.

        In two steps: what is streamed in is acknowledged by the engine even where its disk takes none of it, what is
        selected is not.
        """
        try:
            self.query(self._staged(table))
            self.insert(f"INSERT INTO staged.{table} ({names})", "JSONEachRow", rows)
            self.query(f"INSERT INTO otel.{table} ({names}) SELECT {names} FROM staged.{table}")  # noqa: S608 - our own names
        except StoreError as error:
            why = one_line(error.__cause__ or error)
            raise StoreError(f"{self.name}: {table} took no rows ({why}); check the disk") from error

    def _staged(self, table: str) -> str:
        """The statement that makes or empties the table in memory through which rows of `table` go."""
        if table in self._stages:
            return f"TRUNCATE TABLE staged.{table}"
        rows = self.query(
            "SELECT name, type FROM system.columns WHERE database = 'otel' AND table = {table:String}"
            " AND default_kind NOT IN ('MATERIALIZED', 'ALIAS') ORDER BY position",
            {"table": table},
        )
        self.query("CREATE DATABASE IF NOT EXISTS staged ENGINE = Memory")
        self._stages.add(table)
        columns = ", ".join(f"`{row['name']}` {row['type']}" for row in rows)
        return f"CREATE TABLE staged.{table} ({columns}) ENGINE = Memory"

    def another(self) -> "Embedded":
        """See `Engine`."""
        other = Embedded(self.name, self._place)
        self._others.append(other)
        return other

    def apart(self) -> Apart:
        """See `Engine`: in this engine's own memory, from where rows move without leaving it."""
        return self.another()

    def store(self, move: Move, parameters: Mapping[str, Parameter]) -> None:
        """See `Apart`."""
        known = move.known.replace("$traces", move.traces)
        self.query(move.into + move.rows.replace("$known", known), parameters)

    def alone(self) -> AbstractContextManager[None]:
        """See `Engine`: whoever owns the directory is alone."""
        return nullcontext()

    def close(self) -> None:
        """See `Engine`."""
        if self._session is None:
            return
        for session in (*self._others, self):
            if session._session is not None:
                session._session.close()
                session._session = None
        if self._lock_file is not None:
            self._lock_file.close()


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a directory that a store has been opened on; looks, and makes nothing."""
    found = Path(path)
    return (found / _LOCK).is_file() and (found / _ENGINE).is_dir()


def _own(path: Path) -> IO[bytes]:
    """An exclusive lock on `path` for as long as the file is open; the kernel gives it up if this process dies."""
    if "?" in str(path):
        raise StoreError(f"{path}: the path of a store must not hold '?'; name another directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock_file = (path / _LOCK).open("ab")
    except FileExistsError:
        raise StoreError(f"{path}: the store must be a directory, this is a file; name a directory") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}); name a writable directory") from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock_file.close()
        raise StoreError(
            f"{path}: held by another process; stop its `mfu serve`, or ask it with `mfu report --url`"
        ) from None
    return lock_file


@contextmanager
def _in_utc() -> Iterator[None]:
    """The process's time zone for the engine, which takes it over once, when it starts.

    Columns without a zone of their own have the engine's when a store is opened again, whatever the session's is: rows
    would then lie in days of that zone, be looked for in days of UTC, and those near to midnight not be found.
    """
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        # The engine has had the C library read it, and so for Python's local time too, in which logs are written.
        time.tzset()


def _session(name: str, place: str) -> Any:
    with _in_utc():
        return _opened(name, place)


def _opened(name: str, place: str) -> Any:
    try:
        from chdb.session import Session
    except ImportError as error:
        raise MissingDependencyError(
            "chdb: the provider's store needs it; install it with: pip install 'mfu-sdk[provider]'"
        ) from error
    try:
        return Session(place)  # type: ignore[no-untyped-call]  # chDB ships no types
    except RuntimeError as error:
        if "already initialized with path" in str(error):
            raise StoreError(f"{name}: this process has another store open; close that one first") from error
        raise StoreError(f"{name}: not a readable store ({one_line(error)}); {Embedded.remedy}") from error
