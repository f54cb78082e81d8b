"""Writes docs/reference from the code: telemetry from `semconv`, settings from `settings`, the command line from click.

python docs/generate.py             write the pages
python docs/generate.py --check     say which pages differ from the code, and exit with 1 if any does
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from mfu_sdk import semconv
from mfu_sdk.cli import main as mfu
from mfu_sdk.settings import OPTIONS

REFERENCE = Path(__file__).parent / "reference"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def code(text: str) -> str:
    """`text` as inline code, or nothing where there is none."""
    return f"`{text}`" if text else ""


def telemetry() -> str:
    """Spans, attributes and metrics."""
    spans = [(code(span.name), span.brief) for span in semconv.SPANS.values()]
    attributes = [
        (code(each.name), each.type, code(each.unit), ", ".join(each.on), each.brief)
        for each in semconv.ATTRIBUTES.values()
    ]
    metrics = [(code(each.name), each.kind, code(each.unit), each.brief) for each in semconv.METRICS.values()]
    bounds = [
        (code(each.name), code(each.unit), ", ".join(f"{bound:g}" for bound in each.bounds))
        for each in semconv.METRICS.values()
        if each.bounds
    ]
    return f"""# Telemetry

Made by `docs/generate.py` from `mfu_sdk/semconv.py`; change that file, then run `python docs/generate.py`.

Everything is sent under the instrumentation scope `{semconv.SCOPE}`, version {semconv.SCHEMA_VERSION} of these names.
Units are [UCUM](https://ucum.org/); annotations stand in braces. An attribute whose value is not known is absent.

## Spans

{table(("span", "sent"), spans)}
## Attributes

*On* says where an attribute appears: on the resource, on the span `mfu.` followed by the word, or on metrics' points.

{table(("attribute", "type", "unit", "on", "meaning"), attributes)}
## Metrics

{table(("metric", "kind", "unit", "meaning"), metrics)}
### Bucket bounds

{table(("histogram", "unit", "upper bounds"), bounds)}"""


def settings() -> str:
    """Every `MFU_` variable."""
    rows = [(code(each.variable), each.default, each.values, each.brief) for each in OPTIONS]
    return f"""# Settings

Made by `docs/generate.py` from `mfu_sdk/settings.py`; change that file, then run `python docs/generate.py`.

A value that breaks its rule raises `ConfigurationError`, which names the variable, before anything starts.
`OTEL_*` variables are read by OpenTelemetry's own code and mean what
[its specification](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/) says.

{table(("variable", "default", "may be", "meaning"), rows)}"""


def commands(command: click.Command, parent: click.Context | None, name: str) -> Iterator[click.Context]:
    """The context of `command` and of every command below it, by name."""
    # A fixed width: the page must not depend on the terminal it was made in.
    context = click.Context(command, parent=parent, info_name=name, terminal_width=100, max_content_width=100)
    yield context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            child = command.get_command(context, below)
            if child is not None and not child.hidden:
                yield from commands(child, context, below)


def command_line() -> str:
    """What `--help` says, for `mfu` and each of its commands."""
    sections = [
        f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n" for context in commands(mfu, None, "mfu")
    ]
    return (
        "# Command line\n\n"
        "Made by `docs/generate.py` from `mfu_sdk/cli.py`; change that file, then run `python docs/generate.py`.\n\n"
        "Exit codes: 0 done, 1 the answer is bad, 2 wrong usage.\n\n" + "\n".join(sections)
    )


PAGES: dict[str, Callable[[], str]] = {"telemetry.md": telemetry, "settings.md": settings, "cli.md": command_line}


def main() -> int:
    """Write the pages, or with --check compare them; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="only say which pages differ")
    parser.add_argument("folder", nargs="?", type=Path, default=REFERENCE, help="in place of docs/reference")
    given = parser.parse_args()
    made = {given.folder / name: page() for name, page in PAGES.items()}
    if not given.check:
        for path, text in made.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [str(path) for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if stale:
        print(f"{', '.join(stale)}: differ from the code; run python docs/generate.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
