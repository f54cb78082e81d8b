"""Tells, in a graph that computes a function and its gradient, which of the two its running line belongs to.

torch's control flow (`cond`, `map`, `while_loop`) keeps nothing of its forward: its backward runs a graph that was
traced through both, and so computes the forward once more. Each node of such a graph says which part it was traced in
(`partitioner_tag`, which torch sets while it traces a joint graph), and torch writes one line of code for a node.
"""

import linecache
from types import CodeType, FrameType
from typing import Final

from torch.fx import GraphModule

FILES: Final = "<eval_with_key>"
"""How the names begin that torch.fx gives to the code that it makes of graphs."""

_MOST_CODES: Final = 4096
_forward_lines: Final[dict[CodeType, frozenset[int]]] = {}


def runs_forward(frame: FrameType) -> bool:
    """Whether the frame of a graph's code is at an operator of the forward, in a graph that has a backward too."""
    code = frame.f_code
    found = _forward_lines.get(code)
    if found is None:
        if len(_forward_lines) >= _MOST_CODES:
            _forward_lines.clear()
        found = _forward_lines[code] = _read(frame)
    return frame.f_lineno in found


def _read(frame: FrameType) -> frozenset[int]:
    """The lines of the forward's operators; none where the graph is no joint one."""
    module = frame.f_locals.get("self")
    if not isinstance(module, GraphModule):
        return frozenset()
    tags = {node.name: node.meta.get("partitioner_tag") for node in module.graph.nodes}
    if "is_backward" not in tags.values():
        return frozenset()
    lines = linecache.getlines(frame.f_code.co_filename, frame.f_globals)
    written = {number: line.strip().partition(" =")[0].partition(":")[0] for number, line in enumerate(lines, 1)}
    return frozenset(number for number, name in written.items() if tags.get(name) == "is_forward")
