"""Runs what a Markdown page tells its reader to run: `python run_page.py PAGE`, in the current folder.

Every fenced block opened by ```python or ```console runs, in the page's order:

- python blocks share one namespace, so that a later one goes on where an earlier one stopped;
- a console block is of bash commands, each after `$ ` and going on after a backslash at a line's end. The lines below
  a command are what it must print, with `...` for any text; where there are none, any output will do. A command must
  exit with 0, and cannot go on in the background.

A block is left out where `<!-- not run: REASON -->` stands on the line above it. Blocks of other languages are only
text. The first thing that fails ends the run with exit code 1 and the page's line number.
"""

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

COMMAND_LIMIT_S = 300
LANGUAGES = ("python", "console")
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, its lines, and the number of the first of them in the page, from 1."""

    language: str
    lines: list[str]
    first: int


@dataclass(slots=True)
class Command:
    """One command of a console block: its line in the page, itself, and the output that stands below it."""

    line: int
    text: str
    output: list[str] = field(default_factory=list)


def blocks(lines: list[str]) -> Iterator[Block]:
    """The blocks of a page's lines that are to be run."""
    opened: int | None = None
    for at, line in enumerate(lines):
        if opened is None and line.startswith("```"):
            opened = at
        elif opened is not None and line.rstrip() == "```":
            language = lines[opened].removeprefix("```").strip()
            above = lines[opened - 1].strip() if opened else ""
            if language in LANGUAGES and not NOT_RUN.fullmatch(above):
                yield Block(language, lines[opened + 1 : at], opened + 2)
            opened = None
    if opened is not None:
        raise ValueError(f"line {opened + 1}: this block is never closed")


def commands(block: Block) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    for number, line in enumerate(block.lines, block.first):
        if found and found[-1].text.endswith("\\") and not found[-1].output:
            found[-1].text += f"\n{line}"
        elif line.startswith("$ "):
            found.append(Command(number, line.removeprefix("$ ")))
        elif found:
            found[-1].output.append(line)
        else:
            raise ValueError(f"line {number}: a console block must start with `$ ` and a command")
    return found


def run_command(command: str, wanted: str) -> None:
    """Run `command` in bash. Raises RuntimeError where it fails or prints what it should not."""
    said = subprocess.run(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=COMMAND_LIMIT_S,
    )
    if said.returncode != 0:
        raise RuntimeError(f"$ {command}\nexited with {said.returncode}:\n{said.stdout}")
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if wanted.strip() and not doctest.OutputChecker().check_output(wanted, said.stdout, options):
        raise RuntimeError(f"$ {command}\nshould print:\n{wanted}\nbut printed:\n{said.stdout}")


def main(path: Path) -> None:
    """Run the page at `path`; raises SystemExit with a message where something on it fails."""
    if not path.is_file():
        sys.exit(f"{path}: is missing; the repository promises this page")
    # The reader has activated the environment that this interpreter belongs to.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    namespace: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(path.read_text(encoding="utf-8").splitlines()):
        ran += 1
        if block.language == "python":
            # Blank lines in front, so that a traceback names the page's own line.
            source = "\n" * (block.first - 1) + "\n".join(block.lines)
            exec(compile(source, str(path), "exec"), namespace)
            continue
        for command in commands(block):
            try:
                run_command(command.text, "\n".join(command.output))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                sys.exit(f"{path}:{command.line}: {error}")
    if not ran:
        sys.exit(f"{path}: has no ```python or ```console block to run")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
