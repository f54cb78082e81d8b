"""Says of which product a piece of a compiled graph was made, where its operators alone cannot tell.

Inductor's decompositions write an outer product as a broadcast multiplication and a dot product as a sum of products,
just as a program may write elementwise work. Two things know better. The graph that Inductor is handed has at each node
the operator that it came of (`original_aten`): who watches then knows all. The code that Inductor wrote, which a cache
keeps too, has in the name of each kernel the operators that its nodes came of: that decides for a graph as a whole,
wherever but one answer agrees with it. Where more than one does, nothing is decided.
"""

import importlib
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.utils.weak import WeakIdKeyDictionary

from mfu_sdk.guard import shield

PRODUCTS: Final = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot", "addr", "linear", "matmul"})
"""The operators, by name without namespace, that Inductor's decompositions may take apart."""

_KERNEL: Final = re.compile(r"^(\w+) = async_compile\.\w+\(", re.MULTILINE)
_NAMED: Final = re.compile(r"(?:cpp|triton_(poi|red|per|tem))_fused_(\w+)_\d+")
_EXTERN: Final = re.compile(r"extern_kernels\.(\w+)\(")


@dataclass(frozen=True, slots=True)
class Form:
    """How a product looks that was taken apart: the operators that are written so, and what else may be.

    `twins` are operators of which elementwise work of the same look is made.
    """

    products: frozenset[str]
    twins: frozenset[str]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is known of the nodes of one compiled graph: each node's operator, or those in its kernels' names.

    `written` is None where the code is of a form that cannot be read. `repeats`: some kernel serves more than one
    place, and has the name of the first. `called` has the products that the code calls as they are.
    """

    nodes: Mapping[str, str] | None = None
    written: frozenset[str] | None = None
    repeats: bool = False
    called: Mapping[str, int] = field(default_factory=dict)

    def is_product(self, name: str, form: Form) -> bool | None:
        """Whether the node `name`, the last piece of something of this form, came of a product; None: not known."""
        if self.nodes is not None:
            found = self.nodes.get(name)
            return found in PRODUCTS if found else None
        if self.written is not None and not self.repeats and not self.written & form.products:
            return False
        return None

    def are_products(self, form: Form, *, only: bool, undivided: Mapping[str, int]) -> bool:
        """Whether all in question of this form are products for certain; `only`: there is one, and no other form's.

        `undivided` counts the products that the graph has undivided. One of those in a kernel of Inductor's own may be
        why the kernel's name has its operator.
        """
        if self.nodes is not None or self.written is None or not self.written & form.products:
            return False
        elsewhere = sum(undivided.get(op, 0) for op in form.products)
        elsewhere -= sum(self.called.get(op, 0) for op in form.products)
        return (only and elsewhere <= 0) or not (self.repeats or self.written & form.twins)


UNKNOWN: Final = Provenance()


def of(compiled: Any) -> Provenance:
    """What is known of a `CompiledFxGraph`."""
    nodes = _observed.get(compiled)
    return Provenance(nodes) if nodes is not None else _of_code(getattr(compiled, "source_code", None) or "")


def _of_code(code: str) -> Provenance:
    """What the kernels' names in the code that Inductor wrote tell; nothing where they are not named for operators."""
    config = sys.modules.get("torch._inductor.config")
    if config is not None and {config.cpp.descriptive_names, config.triton.descriptive_names} != {"original_aten"}:
        return UNKNOWN
    kernels = [found[1] for found in _KERNEL.finditer(code)]
    named = [_NAMED.fullmatch(name) for name in kernels]
    if not kernels or not all(named):
        return UNKNOWN
    # A product's own kernel ("tem") has its name by right.
    written = [found[2].split("_") for found in named if found is not None and found[1] != "tem"]
    body = code[code.find("def call(") :]
    called: dict[str, int] = {}
    for found in _EXTERN.finditer(body):
        name = found[1].removeprefix("bias_")
        called[name] = called.get(name, 0) + 1
    repeats = any(len(re.findall(rf"\b{name}(?:\.run)?\(", body)) > 1 for name in kernels)
    return Provenance(None, frozenset(word for words in written for word in words), repeats, called)


# --- watching what is compiled --------------------------------------------------------------------------------------

_IN_USE: Final = "torch._inductor.output_code"
_MODULE: Final = "torch._inductor.compile_fx"
_NAME: Final = "_compile_fx_inner"
_lock: Final = threading.RLock()
_watching = 0
_original: Callable[..., Any] | None = None
_ours: Callable[..., Any] | None = None
_observed: Final = WeakIdKeyDictionary()
"""By compiled graph: the operator that each node came of, by the node's name; "" for a name that stands for two."""


def watch() -> None:
    """Observe from here on what Inductor compiles, if it is in use; as often as `unwatch` undoes it."""
    global _original, _ours, _watching
    if _IN_USE in sys.modules and _MODULE not in sys.modules:
        # torch.compile has loaded the first half of Inductor, and the first compilation will load the other.
        # What torch's own modules warn of as they are loaded is nothing that the user did.
        with shield("count"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(_MODULE)
    with _lock:
        _watching += 1
        module = sys.modules.get(_MODULE)
        if _original is None and module is not None and hasattr(module, _NAME):
            original = getattr(module, _NAME)
            _original, _ours = original, _observing(original)
            setattr(module, _NAME, _ours)


def unwatch() -> None:
    """Undo one `watch`."""
    global _original, _ours, _watching
    with _lock:
        _watching -= 1
        if _watching == 0 and _original is not None:
            # Another's in our place is left there; ours beneath it does as torch's does.
            if getattr(sys.modules[_MODULE], _NAME) is _ours:
                setattr(sys.modules[_MODULE], _NAME, _original)
            _original = _ours = None


def observe() -> Callable[[], None]:
    """Watch until what this returns is called, which counts once."""
    watch()
    watching = [True]

    def leave() -> None:
        with _lock:
            if watching and watching.pop():
                unwatch()

    return leave


def _observing(original: Callable[..., Any]) -> Callable[..., Any]:
    def compile_inner(graph: Any, *args: Any, **kwargs: Any) -> Any:
        nodes = None
        with shield("count"):
            nodes = _nodes(graph)
        compiled = original(graph, *args, **kwargs)
        with shield("count"), _lock:
            if nodes is not None and not isinstance(compiled, str):
                _observed[compiled] = nodes
        return compiled

    return compile_inner


def _nodes(graph: torch.fx.GraphModule) -> dict[str, str] | None:
    """The operator that each node came of, by name; None for a graph whose nodes do not tell."""
    found: dict[str, str] = {}
    told = False
    for node in _called(graph):
        origin = node.meta.get("original_aten")
        told = told or origin is not None
        name = origin._schema.name.partition("::")[2] if isinstance(origin, torch._ops.OpOverload) else str(origin)
        found[node.name] = name if found.get(node.name, name) == name else ""
    return found if told else None


def _called(graph: torch.fx.GraphModule) -> Iterable[torch.fx.Node]:
    modules: Iterator[torch.fx.GraphModule] = (
        module for module in graph.modules() if isinstance(module, torch.fx.GraphModule)
    )
    return (node for module in modules for node in module.graph.nodes if node.op == "call_function")
