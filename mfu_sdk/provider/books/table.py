"""Tables out of the provider's files: YAML that maps a table's name to rows, or CSV, one file a table."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from mfu_sdk.errors import ConfigurationError

FORM: Final = "see docs/how-to/books.md for its form"
_YAML: Final = (".yaml", ".yml")
_MAP: Final = "tag:yaml.org,2002:map"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row as its file has it; `where` names file, table and row, and begins every error about it."""

    where: str
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tables:
    """Rows by table, and single values (the currency) with where they stand."""

    rows: Mapping[str, tuple[Entry, ...]]
    values: Mapping[str, tuple[Entry, ...]]


def read(paths: Iterable[Path], tables: frozenset[str], values: frozenset[str] = frozenset()) -> Tables:
    """The rows of `tables` and the single `values` in all of `paths`: a directory stands for the files in it.

    Raises `ConfigurationError` for a file that cannot be read, breaks its form, or holds anything else.
    """
    rows: dict[str, list[Entry]] = {}
    single: dict[str, list[Entry]] = {}
    for path in files(paths):
        text = _text(path)
        if path.suffix.lower() == ".csv":
            rows.setdefault(_table(path, tables), []).extend(_csv(path, text))
            continue
        for name, content in _yaml(path, text).items():
            if name in values:
                single.setdefault(name, []).append(Entry(f"{path}: {name}", {name: content}))
            elif name in tables:
                rows.setdefault(name, []).extend(_listed(path, name, content))
            else:
                known = ", ".join(sorted(tables | values))
                raise ConfigurationError(f"{path}: {name!r} is no table of this file; it may hold {known}; {FORM}")
    return Tables({name: tuple(found) for name, found in rows.items()}, {n: tuple(v) for n, v in single.items()})


def files(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The files behind `paths`, those of a directory in the order of their names. Raises `ConfigurationError`."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if path.suffix.lower() not in (".csv", *_YAML):
                raise ConfigurationError(f"{path}: its name must end in .yaml, .yml or .csv; rename it")
            found.append(path)
            continue
        within = sorted(item for item in path.iterdir() if item.suffix.lower() in (".csv", *_YAML))
        if not within:
            raise ConfigurationError(f"{path}: the directory holds no .yaml and no .csv file; {FORM}")
        found += within
    return tuple(found)


def _text(path: Path) -> str:
    try:
        # Spreadsheets begin a CSV with a byte order mark.
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read ({error}); name a readable file in UTF-8") from error


def _table(path: Path, tables: frozenset[str]) -> str:
    if path.stem not in tables:
        known = ", ".join(f"{name}.csv" for name in sorted(tables))
        raise ConfigurationError(f"{path}: a CSV's name says which table it is; call it one of {known}")
    return path.stem


def _csv(path: Path, text: str) -> list[Entry]:
    reader = csv.reader(io.StringIO(text))
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if not any(header) or len(set(header)) != len(header):
            raise ConfigurationError(f"{path}: line 1 must name the columns, each once; {FORM}")
        if len(header) == 1 and (apart := re.search(r"[;\t|]", header[0])):
            raise ConfigurationError(
                f"{path}: line 1 parts its columns by {apart[0]!r}; save the table as CSV with commas, numbers as 2.95"
            )
        entries = []
        for cells in reader:
            where = f"{path}: line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise ConfigurationError(
                    f"{where}: has {len(cells)} cells where line 1 names {len(header)} columns;"
                    " put a cell that holds a comma in quotes"
                )
            # An empty cell says as little as a key that is left out.
            named = zip(header, (cell.strip() for cell in cells), strict=True)
            entries.append(Entry(where, {name: cell for name, cell in named if cell}))
    except csv.Error as error:
        raise ConfigurationError(f"{path}: line {reader.line_num} is not CSV ({error}); {FORM}") from error
    return entries


def _yaml(path: Path, text: str) -> Mapping[str, Any]:
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader's subclass
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: is not YAML ({' '.join(str(error).split())}); {FORM}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigurationError(f"{path}: must map the names of tables to lists of rows; {FORM}")
    return content


def _listed(path: Path, name: str, content: Any) -> list[Entry]:
    if content is None:
        return []
    if not isinstance(content, list):
        raise ConfigurationError(f"{path}: {name} must be a list of rows, each `- key: value`; {FORM}")
    entries = []
    for number, row in enumerate(content, 1):
        where = f"{path}: {name} row {number}"
        if not isinstance(row, dict):
            raise ConfigurationError(f"{where}: must map keys to values; {FORM}")
        entries.append(Entry(where, {str(key): value for key, value in row.items() if value is not None}))
    return entries


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    """A mapping that names no key twice: YAML's own rule, which PyYAML does not hold, and a lost row is lost money."""
    seen = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
        seen.add(key.value)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


# libyaml reads ten thousands of allocations in a second, the loader in Python takes ten times as long.
_Loader: Any = type("_Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
_Loader.add_constructor(_MAP, _mapping)
