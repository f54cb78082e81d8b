"""Writes docs/reference from the code: names from `semconv`, `settings` and click, signatures, prices, measurements.

python docs/generate.py             write the pages
python docs/generate.py --check     say which pages differ from the code, and exit with 1 if any does
"""

import argparse
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import measured
import registry
import scored

import mfu_sdk
from mfu_sdk import bars, naming, ranks, records, semconv
from mfu_sdk.cli import main as mfu
from mfu_sdk.counting import free, fused_attention, third_party
from mfu_sdk.counting.formulas import FORMULA_VERSION
from mfu_sdk.counting.pricing import convolutions, linalg, products, quantized, recurrences, sparse, spectral
from mfu_sdk.counting.pricing.unpriced import UNPRICED
from mfu_sdk.provider.report import model
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
    events = [(code(event.name), event.brief, code(f"mfu.{event.place}")) for event in semconv.EVENTS.values()]
    attributes = [
        (code(each.name), each.type, code(each.unit), ", ".join(each.on), each.brief)
        for each in semconv.ATTRIBUTES.values()
    ]
    metrics = [
        (
            code(each.name),
            each.kind,
            code(each.unit),
            each.brief,
            " ".join(map(code, each.labels)),
            " ".join(map(code, naming.series(each))),
        )
        for each in semconv.METRICS.values()
    ]
    bounds = [
        (code(each.name), code(each.unit), ", ".join(f"{bound:g}" for bound in each.bounds))
        for each in semconv.METRICS.values()
        if each.bounds
    ]
    return f"""# Telemetry

Made by `docs/generate.py` from `mfu_sdk/semconv.py`; change that file, then run `python docs/generate.py`.

Everything is sent under the instrumentation scope `{semconv.SCOPE}`, version {semconv.SCHEMA_VERSION} of these names.
Units are [UCUM](https://ucum.org/); annotations stand in braces. An attribute whose value is not known is absent.
[registry](registry) has the same for OpenTelemetry's [weaver](https://github.com/open-telemetry/weaver).

## Spans

{table(("span", "sent"), spans)}
## Events

Log records with a name. They stand in the trace and under the id of the span whose attributes they have, as far as
these are known by then; their body is a sentence for a person, at your own collector only.

{table(("event", "sent", "span"), events)}
## Attributes

*On* says where an attribute appears: on the resource, on the span `mfu.` followed by the word, or on metrics' points.

{table(("attribute", "type", "unit", "on", "meaning"), attributes)}
## Metrics

{table(("metric", "kind", "unit", "meaning", "attributes", "in Prometheus"), metrics)}
### Bucket bounds

{table(("histogram", "unit", "upper bounds"), bounds)}"""


def settings() -> str:
    """Every `MFU_` variable."""
    rows = [(code(each.variable), each.default, each.values, each.brief) for each in OPTIONS]
    return f"""# Settings

Made by `docs/generate.py` from `mfu_sdk/settings.py`; change that file, then run `python docs/generate.py`.

A value that breaks its rule raises `ConfigurationError`, which names the variable, before anything starts.
`OTEL_*` variables mean what
[OpenTelemetry's specification](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/) says.
Timeouts are in seconds, as everywhere in OpenTelemetry Python.

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


def typed(annotation: object) -> str:
    """An annotation as one would write it, names without their modules."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:collections\.abc|typing|mfu_sdk(?:\.[a-z_]+)*)\.", "", text)


def signature(name: str, function: Callable[..., object]) -> str:
    """A function's parameters, one a line."""
    lines = []
    starred = False
    for each in inspect.signature(function).parameters.values():
        if each.kind is each.KEYWORD_ONLY and not starred:
            lines.append("*")
        starred = starred or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        default = "" if each.default is each.empty else f" = {each.default!r}"
        lines.append(f"{stars}{each.name}: {typed(each.annotation)}{default}")
    return f"{name}(\n" + "".join(f"    {line},\n" for line in lines) + ")"


def described(kind: type, heading: str = "##") -> str:
    """A dataclass: its docstring, and its fields with their types."""
    rows = [(code(each.name), code(typed(each.type))) for each in fields(kind)]
    return f"{heading} {kind.__name__}\n\n{inspect.getdoc(kind)}\n\n{table(('field', 'type'), rows)}"


def python() -> str:
    """The public functions, and the records that they give."""
    functions = []
    for name in mfu_sdk.__all__:
        function = getattr(mfu_sdk, name)
        shown = signature(name, function)
        functions.append(f"## mfu_sdk.{name}\n\n```text\n{shown}\n```\n\n{inspect.getdoc(function)}\n")
    given = (
        records.Count,
        records.Uncounted,
        records.OpCost,
        records.Peaks,
        records.Rate,
        records.CollectiveRate,
        records.CollectiveTime,
        records.Expectation,
        records.OpTime,
        records.StepRecord,
        records.DriftEvent,
        records.RunSummary,
        bars.Bar,
        ranks.AllRanks,
        ranks.RankTotals,
        ranks.Counted,
    )
    return (
        "# Python\n\n"
        "Made by `docs/generate.py` from the docstrings; change those, then run `python docs/generate.py`.\n\n"
        + "\n".join(functions)
        + "\n# Records\n\nFrozen dataclasses; None means that a value is not known.\n\n"
        + "\n".join(map(described, given))
    )


def report() -> str:
    """The JSON of `mfu report --format json` and of `GET /api/report`."""
    ordered = list(reachable(model.Report))
    return (
        "# The report as JSON\n\n"
        "Made by `docs/generate.py` from `mfu_sdk/provider/report/model.py` and what it holds; change that, then run "
        "`python docs/generate.py`.\n\n"
        "`mfu report --format json` prints it, and `GET /api/report?since=7d&until=…&tenant=…` answers with it. The\n"
        "document is a `Report`; a field's type names the section that describes it. What is not known is `null`.\n\n"
        + "\n".join(map(described, ordered))
    )


def reachable(kind: type, seen: dict[type, None] | None = None) -> dict[type, None]:
    """The record and every record in its fields, each once, in the order in which they are met."""
    seen = {} if seen is None else seen
    if is_dataclass(kind) and kind not in seen:
        seen[kind] = None
        hints = list(get_type_hints(kind).values())
        while hints:
            hint = hints.pop(0)
            hints += get_args(hint)
            if isinstance(hint, type):
                reachable(hint, seen)
    return seen


def priced(prices: Mapping[str, Any], what: str) -> str:
    """What has a price: one row for all that have the same formula from the same source, names in order."""
    rows: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(prices):
        rows[prices[name].words, prices[name].source].append(name)
    lines = [(listed(names), *words) for words, names in sorted(rows.items(), key=lambda row: row[1])]
    return table((what, "FLOPs", "source"), lines)


def listed(names: Iterable[str]) -> str:
    """Names as inline code."""
    return " ".join(map(code, names))


def libraries(prices: Mapping[str, Any], what: str) -> str:
    """A section for each library; those of its operators that are declared free stand apart."""
    by_library: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, price in prices.items():
        by_library[re.split(r"[.:]", name)[0]][name] = price
    sections = []
    for library, its in sorted(by_library.items()):
        dear = {name: price for name, price in its.items() if price.words != "0"}
        gratis = sorted(name for name, price in its.items() if price.words == "0")
        section = f"#### {library}\n\n"
        section += priced(dear, what) if dear else ""
        section += ("\n" if dear and gratis else "") + (f"Free: {listed(gratis)}\n" if gratis else "")
        sections.append(section)
    return "\n".join(sections)


def counting() -> str:
    """Every price, everything that is free, and what is neither."""
    sections = {
        "Products": products,
        "Quantised numbers": quantized,
        "Sparse matrices": sparse,
        "Convolutions": convolutions,
        "Recurrent layers": recurrences,
        "Linear algebra": linalg,
        "Fourier transforms": spectral,
    }
    tables = [(title, inspect.getdoc(module), module.PRICES) for title, module in sections.items()]
    tables.append(("Fused attention", inspect.getdoc(fused_attention), fused_attention.FORMULAS))
    torchs = "\n".join(f"### {title}\n\n{about}\n\n{priced(prices, 'operator')}" for title, about, prices in tables)
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in UNPRICED.items():
        reasons[reason].append(name)
    return f"""# What is counted, and how

Made by `docs/generate.py` from `mfu_sdk/counting`; change that, then run `python docs/generate.py`.

These are the formulas of version {FORMULA_VERSION}, which every `Count` and every record carries. One multiply-add is
two FLOPs; of two complex numbers it is eight, of a complex and a real one four. A product with an inner size of one
counts as any other. Names are those of the dispatcher, without overload: to find the ones that your program runs, see
`Count.by_op`; those that had no price are in `Count.uncounted`, each with its module.

Whose price holds: yours (`mfu_sdk.register_flops`); then those on this page; then what a library has given torch's own
counter with `register_flop_formula`. An operator that none of them knows, or whose formula cannot say what a call
costs, is uncounted and lowers `coverage`: nothing is taken for free that is not listed here as free. A formula needs
shapes only, but where its words name what is in a tensor: offsets, lengths, or how many numbers are stored. On tensors
without data such a call is uncounted.

## Two counts

*Model FLOPs* are what the model needs: forward and backward, without what is computed again. *Hardware FLOPs* are what
ran. Where a row tells them apart, it says which is which; else they are the same. In a backward every wanted gradient
counts, and none that is not wanted.

## Attention

A score is a pair of a query and a key. Under the convention `exact` the pairs count that the mask lets through, under
`full` all; a `Count` has both. A pair is masked if its boolean is False or its bias at most half of the lowest finite
number of its dtype. Attention that is made of products is recognised by its softmax: its scores and its weighted sum
are products of the table below, and only their pairs that are let through count. The backward of attention is twice
the forward in model FLOPs, whatever its kernel computes again.

## Operators of torch

{torchs}
## Other libraries

None of them is imported: what they run is known by its name.

### Operators

{libraries(third_party.OPERATORS, "operator")}
### Functions

Recognised by their name on the Python stack, as "module:function", while an operator runs beneath them; the price
covers all that runs there.

{libraries(third_party.FUNCTIONS, "function")}
### Triton kernels

{libraries(third_party.KERNELS, "kernel")}
## Free

By rule, as torch's schema says: views; operators with the tag `pointwise`; those with the tag `reduction`; and the
in-place form, the `_foreach_` form and the derivative of any that is free. By name, these:

{table(("why", "operators"), [(why, listed(names)) for why, names in free.REASONS.items()])}
All of these namespaces:

{table(("namespace", "why"), [(code(name), why) for name, why in free.NAMESPACES.items()])}
## Neither

{table(("operators", "why"), [(listed(names), reason) for reason, names in reasons.items()])}
{LIMITS}"""


LIMITS = """## Where the count is wrong, and does not say so

- **Work that goes to a thread that ran before through a queue of the program's own**, or onto its event loop
  (`run_coroutine_threadsafe`): nothing shows that it was handed over. What is handed over by `Thread.start`, a
  `ThreadPoolExecutor` (`asyncio.to_thread` too) or a `ThreadPool` counts, and under a monitor every call of the watched
  model, in whichever thread, with its backward there; a call of one of its parts alone, in such a thread, does not.
- **Backward in another thread than the forward**: autograd numbers its nodes in each thread. Where two threads of a
  count used one number, `by_module` may name the other's module; with several monitors, that may be another model's.
  A GPU's backward runs in a thread of the engine's own: its nodes are told from the program's, but where the gradient
  of a gradient is taken by two calls of the engine (`create_graph=True`), `by_module` may name the other's there too.
- **Code that Inductor took from its cache for another program**: it takes products with vectors apart, and one graph
  may be a `dot` here and `(a * b).sum()` there. What is compiled while a monitor lives is told apart, at each operator;
  what was compiled before, or comes whole from AOTAutograd's cache, by the names of its kernels, which are those of the
  program that filled the cache. Where the names leave it open, the products are in `Count.uncounted`.
- **A function or an `autograd.Function` with a price, inside of compiled code**: it is compiled away, and its operators
  count one by one. `torch.func.grad` in a compiled function reads as forward.
- **What a function's backward computes again** is known as such where it is torch's, Megatron's or DeepSpeed's
  checkpoint, the forward in the backward of `torch.cond`, `map` or `while_loop`, or is differentiated there and then by
  an inner call of the engine (Unsloth's and offloading checkpoints, tiles). What begins under `no_grad`, what is
  differentiated by `torch.func`, and by formulas of its own (a fused kernel without a price), reads as backward.
- **Kernels called through an extension that allocate nothing**, such as DeepGEMM's: no operator shows that they ran.
- **Masks of other numbers** than the rule above (a bias of -1e9 in fp32), a softmax written by hand, and a flex
  `score_mod` that hides pairs: these pairs count.
- **In a loop whose steps are not marked**, what runs before the model's first forward in each step (a teacher, an image
  encoder): mark the steps with `run.step`.
- **Under `torch.linalg.eigvalsh` and its kin** torch computes the vectors too while any dispatch mode is on: the
  counted step runs more than others do, and its count says so.
- **A CUDA graph's `replay` that was taken from its graph before counting began** (`again = graph.replay`) is called
  unseen. `graph.replay()` is charged with what its capture dispatched, if a monitor lived then, and else listed as
  `cuda::graph_replay` with a coverage of zero. A capture is noted by shapes alone: what needs the data of a mask or of
  lengths is uncounted in it. Seen on an H200 with torch 2.11.
- **Broadcast products that are summed** (`(a * b).sum()`) are elementwise, whatever they compute.
"""

PAGES: dict[str, Callable[[], str]] = {
    "telemetry.md": telemetry,
    "settings.md": settings,
    "cli.md": command_line,
    "python.md": python,
    "report.md": report,
    "counting.md": counting,
    "price.md": lambda: measured.price(table),
    "causes.md": lambda: scored.causes(table),
    **{f"registry/{name}": partial(registry.pages().__getitem__, name) for name in registry.pages()},
}


def main() -> int:
    """Write the pages, or with --check compare them; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="only say which pages differ")
    parser.add_argument("folder", nargs="?", type=Path, default=REFERENCE, help="in place of docs/reference")
    given = parser.parse_args()
    made = {given.folder / name: page() for name, page in PAGES.items()}
    if not given.check:
        for path, text in made.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [str(path) for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if stale:
        print(f"{', '.join(stale)}: differ from the code; run python docs/generate.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
