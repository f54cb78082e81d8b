"""Every MFU_ variable is in the one table, and every entry of the table is read."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import mfu_sdk
from mfu_sdk.settings import OPTIONS, Settings

VARIABLES = {option.variable for option in OPTIONS}


class Asked(Mapping[str, str]):
    """An empty environment that remembers what it was asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_no_variable_outside_the_table() -> None:
    """A variable that the package's sources name is an option with a documented meaning."""
    package = Path(mfu_sdk.__file__).parent
    sources = [path for path in package.rglob("*") if path.suffix in {".py", ".sql", ".html", ".js", ".yaml"}]
    named = {
        (variable, path.relative_to(package).as_posix())
        for path in sources
        for variable in re.findall(r"\bMFU_[A-Z][A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8"))
    }
    assert {variable for variable, _ in named} >= VARIABLES
    assert sorted((variable, path) for variable, path in named if variable not in VARIABLES) == []


def test_no_option_that_nobody_reads() -> None:
    """Settings ask the environment for every option, and for no other variable of ours."""
    asked = Asked()
    Settings.from_env(asked)
    assert asked.names == VARIABLES


def test_options_are_told_apart() -> None:
    """No variable is listed twice, and each entry says what it is."""
    assert len(VARIABLES) == len(OPTIONS)
    assert all(option.default and option.values and option.brief for option in OPTIONS)
