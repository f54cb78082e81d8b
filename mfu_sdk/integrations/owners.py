"""Whose parameters an optimizer trains: the modules that hold them, found among all that live in this process."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def trained_by(optimizer: torch.optim.Optimizer) -> list[nn.Module]:
    """The modules that hold what `optimizer` trains, themselves or in a module below them; the outermost come first.

    Where none does (an optimizer that steps copies of its own, as those of mixed precision and of ZeRO do), those
    that hold any parameter that wants a gradient. One look at all objects that Python's collector knows: a quarter of
    a second for half a million of them.
    """
    modules = _living_modules()
    wanted = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    found = _holders(modules, {id(m) for m in modules if not wanted.isdisjoint(map(id, _own(m)))})
    if not found:
        found = holders_of_trained(modules)
    inner = {id(child) for module in found for child in module.children()}
    return sorted(found, key=lambda module: id(module) in inner)


def holders_of_trained(modules: list[nn.Module]) -> list[nn.Module]:
    """Those of `modules` that hold a parameter that wants a gradient, themselves or in a module below them."""
    return _holders(modules, {id(m) for m in modules if any(p.requires_grad for p in _own(m))})


def trains(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Whether `optimizer` steps any parameter of `model`."""
    own = set(map(id, model.parameters()))
    return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])


def as_called(model: nn.Module) -> nn.Module:
    """What a loop calls that was given `model`: what `torch.compile` made of it or of a wrapper of it, else itself."""
    for each in _living_modules():
        if hasattr(each, "_orig_mod") and any(module is model for module in each.modules()):
            return each
    return model


def optimizers() -> list[torch.optim.Optimizer]:
    """All optimizers that live."""
    import torch

    return [each for each in gc.get_objects() if issubclass(type(each), torch.optim.Optimizer)]


def uncompiled(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of `modules` on which a hook is seen, and costs no second compilation.

    What `torch.compile(model)` returned takes hooks; what lies within it, and a model that was compiled in place
    (`model.compile()`), would be compiled again.
    """
    modules = list(modules)
    compiled = [m for m in modules if hasattr(m, "_orig_mod")]
    within = {id(each) for m in compiled for each in m.modules() if each is not m}
    in_place = [m for m in modules if m._compiled_call_impl is not None]
    within |= {id(each) for m in in_place for each in m.modules()}
    return [m for m in modules if id(m) not in within]


def _living_modules() -> list[nn.Module]:
    from torch import nn

    # By the type, not by `isinstance`: objects that stand for others act when they are asked for their class.
    return [each for each in gc.get_objects() if issubclass(type(each), nn.Module) and "_modules" in each.__dict__]


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _holders(modules: list[nn.Module], direct: set[int]) -> list[nn.Module]:
    """The modules in `direct`, and those that have one of them below."""
    known: dict[int, bool] = {}

    def holds(module: nn.Module) -> bool:
        if id(module) not in known:
            # Entered first, for modules that contain one another.
            known[id(module)] = id(module) in direct
            below = [holds(child) for child in module.children()]
            known[id(module)] |= any(below)
        return known[id(module)]

    return [module for module in modules if holds(module)]
