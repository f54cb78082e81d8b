"""Reads the graph that Inductor compiled from the text that it keeps of it.

Inductor drops the graph once it has made code of it, and keeps two texts: a program that reproduces the graph as it
came from AOTAutograd, and the graph after its own passes, which alone shows the graphs inside of the graph. Both are
Python that torch wrote, in this process or the one that filled its cache.
"""

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Final

import torch

_NAMES: Final[dict[str, Any]] = {
    "__builtins__": {
        kind.__name__: kind for kind in (bool, dict, float, getattr, int, len, list, max, min, round, slice, tuple)
    },
    "device": torch.device,
    "inf": math.inf,
    "math": math,
    "nan": math.nan,
    "torch": torch,
}
_CLASS: Final = re.compile(r"( *)class (\S+)\(torch\.nn\.Module\):")
_CONSTANT: Final = re.compile(r" *self\.register_buffer\('(\w+)', (.*)\)| *self\.(\w+) = torch\.nn\.Parameter\((.*)\)")


@dataclass(frozen=True, slots=True)
class Statement:
    """`name = func(*args, **kwargs)`, or without `func` any other expression (an item, arithmetic on sizes).

    `code` evaluates to (args, kwargs), or to the expression's value.
    """

    name: str
    func: Any
    code: CodeType

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """What `code` gives, with the values of earlier statements."""
        return eval(self.code, _NAMES, values)  # noqa: S307 - torch's own text, torch's names


@dataclass(frozen=True, slots=True)
class GraphText:
    """A graph's inputs, statements and outputs by name; an output that is no statement's or input's is None.

    `constants` evaluate to tensors of the right shape (the text has no data), `inner` are the graphs in the graph.
    """

    inputs: tuple[str, ...]
    statements: tuple[Statement, ...]
    outputs: tuple[str | None, ...]
    result: CodeType
    constants: Mapping[str, CodeType] = field(default_factory=dict)
    inner: Mapping[str, "GraphText"] = field(default_factory=dict)

    def made_by(self) -> dict[str, Any]:
        """The operator of each statement, by name."""
        return {statement.name: statement.func for statement in self.statements if statement.func is not None}

    def returned(self, values: Mapping[str, Any]) -> Any:
        """What the graph returns, with the values of its statements."""
        return eval(self.result, _NAMES, values)  # noqa: S307


def read(program: str, after_passes: str) -> GraphText:
    """Read `CompiledFxGraph.runnable_graph_str` and `inductor_post_grad_graph_str`.

    Raises `ValueError` for a text of another form than torch 2.6 to 2.13 writes, and `AttributeError` for operators
    that are not loaded.
    """
    start = program.find("class Repro(torch.nn.Module):")
    lines = program[start:].splitlines() if start >= 0 else []
    body = [line for line in lines[1:] if not line.startswith("def ")][: _end(lines[1:])]
    at = next((i for i, line in enumerate(body) if line.startswith("    def forward(")), None)
    if at is None:
        raise ValueError("the text of a compiled graph has no forward")
    constants = {}
    for line in body[:at]:
        found = _CONSTANT.fullmatch(line)
        if found is not None:
            name, value = (found[1], found[2]) if found[1] else (found[3], found[4])
            constants[name] = compile(value, "<constant>", "eval")
    inner = _inner(after_passes) if "self." in "\n".join(body[at:]) else {}
    return _graph(body[at:], constants, inner)


def _end(lines: list[str]) -> int:
    """How many of `lines` belong to the class: up to the first that is not indented."""
    return next((i for i, line in enumerate(lines) if line.strip() and not line.startswith(" ")), len(lines))


def _inner(text: str) -> dict[str, GraphText]:
    """The graphs inside of a printed graph, by name; those of a name that stands for two are left out."""
    found: dict[str, list[GraphText]] = {}
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if _CLASS.match(line)]
    graphs: dict[str, GraphText] = {}
    # Those deepest inside come last, and are known when the graphs around them are read.
    for start, end in reversed(list(zip(starts, [*starts[1:], len(lines)], strict=True))):
        head = _CLASS.match(lines[start])
        if head is None or not head[1]:
            continue
        graph = _graph(lines[start + 1 : end], {}, graphs)
        found.setdefault(head[2], []).append(graph)
        graphs[head[2]] = graph
    return {name: graphs[name] for name, same in found.items() if len(same) == 1}


def _graph(lines: list[str], constants: Mapping[str, CodeType], inner: Mapping[str, GraphText]) -> GraphText:
    indent = next((len(line) - len(line.lstrip()) for line in lines if line.lstrip().startswith("def forward(")), 0)
    function = ast.parse("\n".join(line[indent:] for line in lines if line.strip())).body[0]
    if not isinstance(function, ast.FunctionDef) or not isinstance(function.body[-1], ast.Return):
        raise ValueError("the text of a compiled graph is no function that returns")
    statements = []
    for line in function.body[:-1]:
        target = (
            line.targets[0] if isinstance(line, ast.Assign) else line.target if isinstance(line, ast.AnnAssign) else 0
        )
        value = line.value if isinstance(line, (ast.Assign, ast.AnnAssign)) else None
        if not isinstance(target, ast.Name) or value is None:
            raise ValueError(f"a compiled graph's text has {ast.unparse(line)!r}: only assignments can be read")
        if not (isinstance(value, ast.Constant) and value.value is None):
            statements.append(_statement(target.id, value))
    returned = function.body[-1].value
    items = returned.elts if isinstance(returned, (ast.Tuple, ast.List)) else [returned]
    return GraphText(
        inputs=tuple(argument.arg for argument in function.args.args if argument.arg != "self"),
        statements=tuple(statements),
        outputs=tuple(item.id if isinstance(item, ast.Name) else None for item in items),
        result=_code(returned if returned is not None else ast.Constant(None)),
        constants=constants,
        inner=inner,
    )


def _statement(name: str, value: ast.expr) -> Statement:
    if isinstance(value, ast.Call) and ast.unparse(value.func).startswith("torch.ops."):
        func = eval(_code(value.func), _NAMES)  # noqa: S307
        if isinstance(func, torch._ops.OpOverloadPacket):
            overloads = func.overloads()
            if len(overloads) != 1:
                raise ValueError(f"a compiled graph's text names {func} without its overload")
            func = getattr(func, overloads[0])
        keywords = ast.Dict([ast.Constant(k.arg) for k in value.keywords], [k.value for k in value.keywords])
        return Statement(name, func, _code(ast.Tuple([ast.Tuple(value.args, ast.Load()), keywords], ast.Load())))
    return Statement(name, None, _code(value))


def _code(value: ast.expr) -> CodeType:
    return compile(ast.fix_missing_locations(ast.Expression(value)), "<compiled graph>", "eval")
