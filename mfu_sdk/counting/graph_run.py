"""Runs a compiled graph's operators on tensors without data, of the sizes that it was called with.

What decides a price by its data is had for real: an input, and whatever costs nothing to compute from inputs and
constants alone (attention's masks, as a rule).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import _disable_current_modes

from mfu_sdk.counting import registry
from mfu_sdk.counting.call import Call, tensors
from mfu_sdk.counting.dataless import without_data
from mfu_sdk.counting.decomposed import Made, Undivided, whole
from mfu_sdk.counting.fused import Chains
from mfu_sdk.counting.graph_text import GraphText
from mfu_sdk.counting.provenance import UNKNOWN, Provenance

_aten: Final = torch.ops.aten
_CAST: Final = torch.ops.prims.convert_element_type.default
# What a formula reads the data of, by the schema's name of the argument: masks, packed lengths, groups' ends.
_READ: Final = frozenset(
    {"attn_mask", "attn_bias", "bias", "mask", "cum_seq_q", "cum_seq_k", "cu_seqlens_q", "cu_seqlens_k", "seqused_k"}
    | {"offs"}
)
# torch's own pieces, all elementwise, reductions or copies but for these.
_PRIMS_WITH_PRODUCTS: Final = frozenset({"svd", "fft_r2c", "fft_c2c", "fft_c2r"})
_MOST_ELEMENTS: Final = 1 << 27
"""Elements that are computed for real in one run of a graph, at most: a mask for 32 sequences of 2,048."""


class UnknownInside(Exception):  # noqa: N818 - it is no error: what a graph does is not known
    """A graph has something inside whose work and results cannot be known without running it."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator of a compiled graph. `again`: the forward graph has it too, so here it is recomputed.

    `known` is False for an operator that stands for work that cannot be seen, such as a branch on data.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    again: bool = False
    known: bool = True


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run found: operators, outputs by name, whether its data or facts count, and what chains move (`fused`)."""

    operations: tuple[Operation, ...]
    outputs: tuple[Any, ...]
    reusable: bool
    moved: tuple[tuple[str, int, bool], ...] = ()


def run(
    graph: GraphText,
    given: Sequence[Any],
    *,
    alike: Sequence[Any] = (),
    constants: Mapping[str, Tensor] | None = None,
    forward: GraphText | None = None,
    provenance: Provenance = UNKNOWN,
) -> Ran:
    """Run `graph` for the real inputs `given`: tensors, and sizes as ints.

    `alike` has, by position, tensors of an earlier run that stand for the same data, or None. `forward` is the graph
    whose backward this is, `provenance` what is known of where its pieces came from. Raises `UnknownInside`, or what an
    operator raises.
    """
    with _disable_current_modes(), torch.no_grad(), torch._C._DisableAutocast():
        runner = _Runner(constants or {}, provenance)
        with without_data():
            fakes = [runner.stand_in(value, alike[i] if i < len(alike) else None) for i, value in enumerate(given)]
            runner.interpret(graph, fakes, forward)
        runner.settle()
    return Ran(tuple(runner.operations), runner.returned, not runner.particular, runner.chains.all_moved())


class _Held:
    """What `self.name` is in a graph's text: a constant, or a graph inside of the graph."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self.__dict__.update(named)


@dataclass(frozen=True, slots=True)
class _Higher:
    """One call of a higher-order operator; `forward` has the graphs inside of the forward graph."""

    func: HigherOrderOperator
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    forward: Mapping[str, GraphText]
    again: bool


class _Runner:
    def __init__(self, constants: Mapping[str, Tensor], provenance: Provenance) -> None:
        self.operations: list[Operation] = []
        self.returned: tuple[Any, ...] = ()
        self.chains = Chains()
        # Whether what was found depends on more than the inputs' shapes.
        self.particular = False
        self._constants = constants
        self._made: dict[int, Made] = {}
        self._real: dict[int, Tensor | None] = {}
        # Tensors that may be attention scores, by id, as masks are to be read where they meet those.
        self._scores: set[int] = set()
        # An id is a tensor's own for as long as the tensor lives.
        self._kept: list[Any] = []
        self._elements = 0
        self._undivided = Undivided(provenance)

    def stand_in(self, value: Any, same: Any = None) -> Any:
        """A tensor without data for an input; `same` if that has its form."""
        if not isinstance(value, Tensor):
            return value
        if value.layout is not torch.strided:
            raise UnknownInside(f"an input of layout {value.layout}")
        form = (value.shape, value.stride(), value.dtype)
        if isinstance(same, Tensor) and (same.shape, same.stride(), same.dtype) == form:
            self.particular = True
            self._scores.add(id(same))
            fake = same
        else:
            fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        self._kept.append(fake)
        self._real[id(fake)] = value
        return fake

    def interpret(self, graph: GraphText, inputs: Sequence[Any], forward: GraphText | None) -> Any:
        """Run `graph`'s statements; its outputs are in `returned` after."""
        earlier = forward.made_by() if forward is not None else {}
        held: dict[str, Any] = dict(graph.inner)
        for name, code in graph.constants.items():
            held[name] = self._constant(name, code)
        values: dict[str, Any] = dict(zip(graph.inputs, inputs, strict=True))
        values["self"] = _Held(held)
        for statement in graph.statements:
            given = statement.evaluate(values)
            if statement.func is None:
                values[statement.name] = given
                continue
            args, kwargs = given
            again = earlier.get(statement.name) is statement.func
            if isinstance(statement.func, HigherOrderOperator):
                handler = _HIGHER.get(statement.func._name)
                if handler is None:
                    raise UnknownInside(f"higher_order::{statement.func._name}")
                inside = forward.inner if forward is not None else {}
                result = handler(self, _Higher(statement.func, args, kwargs, inside, again))
            else:
                result = self._operator(statement.func, args, kwargs, statement.name, again=again)
            values[statement.name] = result
            self._kept.append(result)
        self.returned = tuple(values.get(name) if name is not None else None for name in graph.outputs)
        return graph.returned(values)

    def _constant(self, name: str, code: Any) -> Tensor:
        value: Tensor = eval(code, {"torch": torch})  # noqa: S307 - torch's own text
        self._kept.append(value)
        self._real[id(value)] = self._constants.get(name)
        return value

    # --- operators ---------------------------------------------------------------------------------------------------

    def _operator(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str, *, again: bool
    ) -> Any:
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._made[id(result)] = last = Made(func, args, kwargs, name)
            found = self._undivided.meet(last, result, self._made, len(self.operations))
            if found is not None:
                made = result if found.result is None else found.result
                self._emit(found.func, tuple(found.args), found.kwargs, made, again=again)
                return result
        self._emit(func, args, kwargs, result, again=again)
        return result

    def settle(self) -> None:
        """What may or may not be a product is decided by all that the graph has, or is not known."""
        unsure, strays = self._undivided.among([operation.func for operation in self.operations])
        for at in unsure:
            self.operations[at] = replace(self.operations[at], known=False)
        self.operations += [Operation(piece.func, tuple(piece.args), {}, None, known=False) for piece in strays]

    def _emit(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, *, again: bool
    ) -> None:
        if func is _CAST:
            func, args, kwargs = _aten._to_copy.default, args[:1], {"dtype": args[1]}
        rule, piece = registry.rule(func), _is_piece(func)
        asks = result is not None and not any(True for _ in tensors(result))
        if not asks and rule.kind != "view":
            self.chains.enter(
                rule.name, Call(func, args, kwargs, result), fused=piece or rule.kind == "free", again=again
            )
        read = self._follow(func, args, result)
        if piece or asks or (rule.kind in ("subclass", "free", "view") and not rule.watched):
            return
        if rule.kind in ("priced", "users"):
            parameters = [argument.name for argument in func._schema.arguments]
            read |= {i for i, parameter in enumerate(parameters[: len(args)]) if parameter in _READ}
            kwargs = {key: self._with_data(value) if key in _READ else value for key, value in kwargs.items()}
        if read:
            args = tuple(self._with_data(value) if i in read else value for i, value in enumerate(args))
        if func in (_aten._softmax.default, _aten._safe_softmax.default, _aten._softmax_backward_data.default):
            self.particular = True
        self.operations.append(Operation(func, args, kwargs, result, again))

    def _follow(self, func: OpOverload, args: tuple[Any, ...], result: Any) -> set[int]:
        """Follow attention scores from their product; the positions of arguments that mask them."""
        if not isinstance(result, Tensor):
            return set()
        name = func._schema.name
        if name in ("aten::bmm", "aten::baddbmm"):
            self._scores.add(id(result))
            return set()
        met = [i for i, value in enumerate(args) if id(value) in self._scores]
        if any(args[i].numel() == result.numel() for i in met):
            self._scores.add(id(result))
            if name in ("aten::add", "aten::where", "aten::masked_fill"):
                return {i for i, value in enumerate(args) if isinstance(value, Tensor) and i not in met}
        return set()

    def _with_data(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        real = self.real(value)
        if real is None:
            return value
        self.particular = True
        return real

    # --- data --------------------------------------------------------------------------------------------------------

    def real(self, value: Tensor) -> Tensor | None:
        """`value` with its data, or None where that would be the model's own work, random, or too much."""
        if id(value) in self._real:
            return self._real[id(value)]
        found = self._made.get(id(value))
        computed = None
        if found is not None and self._may_compute(found, value):
            args, kwargs = (
                [self._really(arg) for arg in found.args],
                {k: self._really(v) for k, v in found.kwargs.items()},
            )
            if not any(arg is _MISSING for arg in (*args, *kwargs.values())):
                with _disable_current_modes():
                    computed = found.func(*args, **kwargs)
        self._real[id(value)] = computed
        return computed

    def _may_compute(self, found: Made, value: Tensor) -> bool:
        func = found.func
        if func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags:
            return False
        if "random" in func._schema.name or "seed" in func._schema.name:
            return False
        if not (_is_piece(func) or registry.rule(func).kind in ("free", "view")):
            return False
        if whole(found, value, self._made, self._undivided.provenance) is not None:
            return False
        self._elements += 0 if func.is_view else value.numel()
        return self._elements <= _MOST_ELEMENTS

    def _really(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            found = self.real(value)
            return _MISSING if found is None else found
        if isinstance(value, (list, tuple)):
            items = [self._really(item) for item in value]
            return _MISSING if any(item is _MISSING for item in items) else type(value)(items)
        return value

    # --- higher-order operators --------------------------------------------------------------------------------------

    def _inner(self, graph: Any, inputs: Sequence[Any], forward: GraphText | None = None) -> Any:
        if not isinstance(graph, GraphText):
            raise UnknownInside("a graph inside of the graph has no text")
        return self.interpret(graph, inputs, forward)

    def _invoke_subgraph(self, call: _Higher) -> Any:
        graph, identifier, *inputs = call.args
        before = len(self.operations)
        result = self._inner(graph, inputs, call.forward.get(str(identifier).replace("_bw_", "_fw_")))
        if call.again:
            self.operations[before:] = [replace(operation, again=True) for operation in self.operations[before:]]
        return result

    def _cond(self, call: _Higher) -> Any:
        predicate, if_true, if_false, inputs = call.args
        chosen = self._with_data(predicate)
        if chosen is not predicate or isinstance(chosen, bool):
            with _disable_current_modes():
                taken = if_true if bool(chosen) else if_false
            return self._inner(taken, inputs)
        before = len(self.operations)
        result = self._inner(if_true, inputs)
        self._undivided.forget(before)
        self.operations[before:] = [Operation(call.func, tuple(inputs), {}, result, call.again, known=False)]
        return result

    def _flex(self, call: _Higher) -> Any:
        args = tuple(_callable(value) for value in call.args)
        result = call.func(*args, **call.kwargs)
        given = tuple(tuple(map(self._with_data, arg)) if isinstance(arg, tuple) else arg for arg in args)
        self.particular = True
        self.operations.append(Operation(call.func, given, call.kwargs, result, call.again))
        return result

    def _functionalized(self, call: _Higher) -> Any:
        result = call.func(*call.args, **call.kwargs)
        kwargs = dict(call.kwargs)
        if "_all_bases" in kwargs:
            from torch._higher_order_ops import auto_functionalize as theirs

            bases = kwargs.pop("_all_bases")
            names, types = theirs.get_mutable_args(call.args[0])
            for name, view in theirs.read_view_information_from_args(names, types, kwargs, bases).items():
                views = view if isinstance(view, list) else [view]
                made = [None if one is None else one.regenerate_view(bases) for one in views]
                kwargs[name] = made if isinstance(view, list) else made[0]
        self._emit(call.args[0], (), kwargs, result, again=call.again)
        return result

    def _triton(self, call: _Higher) -> Any:
        from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

        given = call.kwargs["kwargs"]
        cloned = {name: torch.empty_like(given[name]) for name in call.kwargs.get("tensors_to_clone", ())}
        # A graph from a cache has its kernels in no table of this process.
        known = call.kwargs["kernel_idx"] in kernel_side_table.id_to_kernel
        self.operations.append(Operation(call.func, call.args, call.kwargs, cloned, call.again, known))
        return cloned

    def _with_random_state(self, call: _Higher) -> Any:
        kwargs = {name: value for name, value in call.kwargs.items() if name != "rng_state"}
        func, *inputs = call.args[1:] if call.func._name == "run_with_rng_state" else call.args
        result = self._operator(func, tuple(inputs), kwargs, "", again=call.again)
        return (torch.empty(16, dtype=torch.uint8), result) if call.func._name == "run_and_save_rng_state" else result

    def _with_effects(self, call: _Higher) -> Any:
        token, func, *inputs = call.args
        if not isinstance(func, OpOverload):
            raise UnknownInside(f"{func} with effects")
        result = self._operator(func, tuple(inputs), call.kwargs, "", again=call.again)
        return (token, *result) if isinstance(result, tuple) else (token, result)


class _Function:
    """A graph inside of a graph as a function of tensors with data, which a mask's formula may call."""

    def __init__(self, graph: GraphText) -> None:
        self._graph = graph

    def __call__(self, *inputs: Any) -> Any:
        values: dict[str, Any] = dict(zip(self._graph.inputs, inputs, strict=True))
        for statement in self._graph.statements:
            given = statement.evaluate(values)
            values[statement.name] = given if statement.func is None else statement.func(*given[0], **given[1])
        return self._graph.returned(values)


def _callable(value: Any) -> Any:
    if isinstance(value, GraphText):
        return _Function(value)
    return tuple(map(_callable, value)) if isinstance(value, tuple) else value


_MISSING: Final = object()
_HIGHER: Final[Mapping[str, Callable[[_Runner, _Higher], Any]]] = {
    "auto_functionalized": _Runner._functionalized,
    "auto_functionalized_v2": _Runner._functionalized,
    "cond": _Runner._cond,
    "flex_attention": _Runner._flex,
    "flex_attention_backward": _Runner._flex,
    "graphsafe_run_with_rng_state": _Runner._with_random_state,
    "invoke_subgraph": _Runner._invoke_subgraph,
    "run_and_save_rng_state": _Runner._with_random_state,
    "run_with_rng_state": _Runner._with_random_state,
    "triton_kernel_wrapper_functional": _Runner._triton,
    "triton_kernel_wrapper_mutation": _Runner._triton,
    "with_effects": _Runner._with_effects,
}


def _is_piece(func: OpOverload) -> bool:
    """Whether `func` is one of the small operators that torch's decompositions are made of."""
    namespace, _, name = func._schema.name.partition("::")
    return namespace in ("prims", "inductor_prims") and name not in _PRIMS_WITH_PRODUCTS
