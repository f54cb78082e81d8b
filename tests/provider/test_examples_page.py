"""The page of examples/provider: it names every file, its links lead somewhere, and its `mfu` commands are commands."""

import re
import shlex
from pathlib import Path

import click
import pytest

from mfu_sdk.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples" / "provider"
PAGE = (EXAMPLES / "README.md").read_text("utf-8")
LINKS = set(re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE))
COMMANDS = [
    line.split("#")[0].split("|")[0].split(">")[0]
    for line in re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)
    if line.startswith("mfu ")
]


def test_every_file() -> None:
    """No file is left unexplained."""
    files = {
        path.relative_to(EXAMPLES).as_posix()
        for path in EXAMPLES.rglob("*")
        if path.is_file() and not {"secrets", "__pycache__"} & set(path.parts)
    } - {"README.md"}
    assert len(files) > 20
    assert sorted(name for name in files if name not in LINKS and name not in PAGE) == []


def test_links() -> None:
    """What is linked is there."""
    assert len(LINKS) > 20
    assert sorted(link for link in LINKS if not (EXAMPLES / link).exists()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str) -> None:
    """Every option of a command is one that it has."""
    words = shlex.split(command)[1:]
    found: click.Command = main
    while isinstance(found, click.Group):
        found = found.commands[words.pop(0)]
    given = {word for word in words if word.startswith("--")}
    assert given
    assert given <= {name for option in found.params for name in option.opts}
