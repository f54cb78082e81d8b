"""One operator call with its arguments by name, as pricing reads it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch


@lru_cache(maxsize=4096)
def _parameters(func: torch._ops.OpOverload) -> tuple[tuple[str, Any], ...]:
    return tuple((a.name, a.default_value if a.has_default_value() else None) for a in func._schema.arguments)


class Call:
    """An operator's overload, its arguments by their schema's names, and its result.

    `call["mat2"]` gives an argument or its default; `out` is the result, the first tensor of it where there are
    several. Raises `KeyError` for a name that the schema lacks, which makes the operator uncounted.
    """

    __slots__ = ("_named", "args", "func", "kwargs", "result")

    def __init__(
        self, func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.result = result
        self._named: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        if self._named is None:
            parameters = _parameters(self.func)
            self._named = dict(parameters)
            self._named.update(zip((n for n, _ in parameters), self.args, strict=False))
            self._named.update(self.kwargs)
        return self._named[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or `default` where the schema has no such name."""
        try:
            return self[name]
        except KeyError:
            return default

    @property
    def out(self) -> torch.Tensor:
        """The result's first tensor."""
        return next(tensors(self.result))

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the tensor argument `name`."""
        return tuple(self[name].shape)

    def inputs(self) -> Iterator[torch.Tensor]:
        """Every tensor that the operator may read: all arguments but those it only writes (`out=`)."""
        yield from tensors(self.args)
        for argument in self.func._schema.arguments:
            if argument.name in self.kwargs and not argument.is_out:
                yield from tensors(self.kwargs[argument.name])


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in `value`, in order, through lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
