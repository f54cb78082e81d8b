"""What runs the store's SQL: the port that chDB in this process and a ClickHouse server over HTTP both fill.

The SQL is one text for both. What differs is here: where it is sent, how bytes get in, who else may write there, and
where requests are taken apart.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from mfu_sdk.errors import StoreError

Row = dict[str, Any]


class ArrayText(str):
    """An array as the engine itself wrote it, with `toString`: a parameter whose items Python need not look at."""

    __slots__ = ()


Parameter = str | int | float | None | Sequence[str] | Sequence[int]

# Spans of one request may start on as many days as the receiver lets through, and each day is a partition.
SETTINGS: Final[Mapping[str, str]] = {
    "session_timezone": "UTC",
    "date_time_input_format": "best_effort",
    "output_format_json_quote_64bit_integers": "0",
    "max_partitions_per_insert_block": "1000",
    # Compiling a wide query to machine code takes longer (0.4 s) than running it over sums.
    "compile_expressions": "0",
    "compile_aggregate_expressions": "0",
}
"""What every statement runs with, wherever it runs."""


class QueryError(StoreError):
    """The engine refused a query, which means something else while the store is being opened than later."""


@dataclass(frozen=True, slots=True)
class Move:
    """The statements by which spans that were taken apart are stored, but for those that are stored already.

    `rows` selects them, less those that $known stands for; `known` selects the latter from the store, of the trace ids
    that $traces stands for, which `traces` selects where the spans were taken apart.
    """

    into: str
    rows: str
    known: str
    traces: str


class Engine(ABC):
    """A line to what runs the SQL. It serves one thread at a time; `another` is for another thread."""

    name: str
    """What messages call it: a directory, or a server's address without credentials."""

    shared: ClassVar[bool]
    """Whether others may write to it at the same time."""

    remedy: ClassVar[str]
    """What to do where it cannot be opened."""

    @abstractmethod
    def fetch(self, sql: str, form: str, parameters: Mapping[str, Parameter]) -> bytes:
        """What a statement with ``{name:Type}`` parameters answers, in one of ClickHouse's formats.

        Raises `StoreError`.
        """

    @abstractmethod
    def insert(self, into: str, form: str, data: bytes) -> None:
        """Insert `data` (`into` is ``INSERT INTO …`` without its format). When it returns it is on disk, and once only.

        Raises `StoreError` where that is not so or not known.
        """

    @abstractmethod
    def add(self, table: str, names: str, rows: bytes) -> None:
        """Insert rows in JSON, one a line, into the columns `names` of a table of the store. On disk when it returns.

        Raises `StoreError` where that is not so or not known.
        """

    @abstractmethod
    def another(self) -> "Engine":
        """Another line to the same, which ends when this one is closed."""

    @abstractmethod
    def apart(self) -> "Apart":
        """A place of its own in which requests are taken apart, of whoever stores them here."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """While it lasts no other process changes the schema."""

    @abstractmethod
    def close(self) -> None:
        """End it; a second call does nothing."""

    def query(self, sql: str, parameters: Mapping[str, Parameter] | None = None) -> list[Row]:
        """The rows of a statement with ``{name:Type}`` parameters. Raises `StoreError`."""
        # One document, in which a row does not repeat the names of its columns: half of what reading rows costs.
        text = self.fetch(sql, "JSONCompact", parameters or {})
        if not text:
            return []
        found = json.loads(text)
        names = [column["name"] for column in found["meta"]]
        return [dict(zip(names, values, strict=True)) for values in found["data"]]


class Apart(ABC):
    """Tables in memory in which requests are taken apart, before what is good of them is stored."""

    @abstractmethod
    def query(self, sql: str, parameters: Mapping[str, Parameter] | None = None) -> list[Row]:
        """The rows of any statement over these tables. Raises `StoreError`."""

    @abstractmethod
    def insert(self, into: str, form: str, data: bytes) -> None:
        """Insert `data` into one of them. Raises `StoreError` where the engine takes none of it."""

    @abstractmethod
    def store(self, move: Move, parameters: Mapping[str, Parameter]) -> None:
        """Store what `move` selects. When it returns it is on disk, and once only. Raises `StoreError`."""


def text_of(value: Parameter) -> str:
    """A value as ClickHouse reads a query parameter: escaped, an array's strings in quotes, NULL as \\N."""
    if value is None:
        return "\\N"
    if isinstance(value, ArrayText):
        return value
    if isinstance(value, str):
        return _escaped(value)
    if isinstance(value, Sequence):
        return "[" + ",".join(_item(item) for item in value) + "]"
    return str(value)


def one_line(error: BaseException) -> str:
    """What an engine said, in one line of bounded length."""
    return " ".join(str(error).split("Stack trace")[0].split())[:300]


def _item(value: str | int) -> str:
    return "'" + _escaped(value).replace("'", "\\'") + "'" if isinstance(value, str) else str(value)


def _escaped(text: str) -> str:
    return (
        text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\0")
    )
