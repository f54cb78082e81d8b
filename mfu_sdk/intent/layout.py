"""How a model is laid out over GPUs, and what that layout exchanges: textbook volumes over two kinds of wire."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mfu_sdk.counting.collective_time import bus_factor
from mfu_sdk.counting.exchanges import Beside, Exchange, Seconds
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.records import Rate

_ZERO: Final = "Rajbhandari et al., ZeRO, 2020, section 7"
_MEGATRON: Final = "Shoeybi et al., Megatron-LM, 2019, section 3"
_PIPELINE: Final = "Narayanan et al., Megatron-LM on GPU clusters, SC21, section 2.2"
_EXPERTS: Final = "Rajbhandari et al., DeepSpeed-MoE, 2022, section 5"
_RING: Final = "Liu et al., Ring Attention, 2023, section 3"


@dataclass(frozen=True, slots=True)
class Layout:
    """Numbers of GPUs along each way to be parallel: data, tensor, pipeline, context, expert.

    A step of a replica runs in `microbatches`; a pipeline has `interleave` stages on each GPU. Experts are shared out
    among `ep` data-parallel GPUs, so they add none.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    microbatches: int = 1
    interleave: int = 1
    ep: int = 1

    @property
    def replica(self) -> int:
        """GPUs that share one replica's step."""
        return self.tp * self.pp * self.cp

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return self.dp * self.replica

    @property
    def bubble(self) -> float:
        """What a pipeline stands idle as a share of the time that it works: (p−1)/(v·m), Narayanan et al., SC21.

        That is (p−1)/(m+p−1) of the whole where v is 1.
        """
        return (self.pp - 1) / (self.interleave * self.microbatches)

    def __str__(self) -> str:
        parts = [f"{name} {value}" for name in ("dp", "tp", "pp", "cp", "ep") if (value := getattr(self, name)) > 1]
        return f"{self.gpus} GPUs" + (f" ({', '.join(parts)})" if parts else "") if self.gpus > 1 else "1 GPU"


def laid_out(
    gpus: int | None,
    dp: int | None,
    tp: int,
    pp: int,
    cp: int,
    batch: int,
    microbatches: int | None,
    interleave: int,
    ep: int = 1,
) -> Layout:
    """The layout that these numbers give; what `gpus` leave over is data parallel.

    Without `microbatches` a pipeline runs a replica's sequences one at a time. Raises `ConfigurationError` for numbers
    that do not go together.
    """
    given = {"gpus": gpus, "dp": dp, "tp": tp, "pp": pp, "cp": cp, "ep": ep, "interleave": interleave}
    for name, value in given.items():
        if value is not None and value < 1:
            raise ConfigurationError(f"{name}={value}: must be 1 or more")
    replica = tp * pp * cp
    if dp is None:
        if gpus is not None and gpus % replica:
            raise ConfigurationError(f"gpus={gpus}: must be a multiple of tp × pp × cp = {replica}")
        dp = 1 if gpus is None else gpus // replica
    elif gpus is not None and gpus != dp * replica:
        raise ConfigurationError(f"gpus={gpus}: must be dp × tp × pp × cp = {dp * replica}; leave one of them out")
    if microbatches is None:
        microbatches = batch if pp > 1 else 1
    if microbatches < 1 or batch % microbatches:
        raise ConfigurationError(f"microbatches={microbatches}: must divide the batch of {batch}")
    if interleave > 1 and pp == 1:
        raise ConfigurationError(f"interleave={interleave}: needs a pipeline; give pp")
    if dp % ep:
        raise ConfigurationError(f"ep={ep}: must divide the {dp} data-parallel GPUs, which share the experts out")
    return Layout(dp, tp, pp, cp, microbatches, interleave, ep)


@dataclass(frozen=True, slots=True)
class Wires:
    """Bus rates of collectives in bytes/s: among the `gpus_per_node` of a node, and of one GPU's adapter between nodes.

    `across` is in place of the latter where collectives between nodes were measured. None is not known.
    """

    within: Rate | None
    adapter: Rate | None
    gpus_per_node: int = 8
    across: Rate | None = None

    def of(self, ranks: int, stride: int) -> tuple[Rate | None, int]:
        """The bus rate of a group of `ranks` GPUs, each `stride` after the last, and on how many nodes they are.

        Where a group has several GPUs in each node, a ring leaves the node through all of their adapters.
        """
        here = max(1, self.gpus_per_node // stride)
        nodes = math.ceil(ranks / here)
        if nodes == 1:
            return self.within, 1
        if self.across is not None or self.adapter is None:
            return self.across, nodes
        together = min(here, ranks)
        if together == 1 or self.within is None:
            return self.adapter, nodes
        a, w = self.adapter, self.within
        return Rate(
            min(w.flops_per_s, together * a.flops_per_s),
            min(w.low, together * a.low),
            min(w.high, together * a.high),
            f"{together} adapters: {a.source}",
            0.0,
        ), nodes


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the exchanges are made of: one replica's parameters, layers and widths, and the new tokens of a sequence.

    `experts` are those parameters that are shared out, in `expert_layers` layers, of which a token takes `top_k`.
    """

    params: int
    layers: int | None
    hidden: int | None
    kv: int | None
    element_bytes: int
    batch: int
    tokens: int
    experts: int = 0
    expert_layers: int = 0
    top_k: int = 0


def exchanges(
    layout: Layout, sizes: Sizes, wires: Wires, *, training: bool, recompute: bool
) -> tuple[tuple[Exchange, ...], tuple[str, ...]]:
    """What one GPU exchanges in a step, and what has no known rate or size, in words."""
    found, missing = [], []
    for made, name in _exchanges(layout, sizes, wires, training, recompute):
        if made is None:
            missing.append(name)
        else:
            found.append(made)
    return tuple(found), tuple(missing)


def _exchanges(
    layout: Layout, sizes: Sizes, wires: Wires, training: bool, recompute: bool
) -> Iterator[tuple[Exchange | None, str]]:
    m = layout.microbatches
    stage = layout.tp * layout.pp
    if training:
        layers = max(1, (sizes.layers or 1) // layout.pp)
        apart = sizes.experts if layout.ep > 1 else 0
        over = layout.dp * layout.cp
        yield from _of_weights(layout, (sizes.params - apart) * sizes.element_bytes / stage, layers, over, 1, wires)
        if apart:
            # Each expert's replicas are fewer, and farther apart.
            layers = max(1, sizes.expert_layers // layout.pp)
            each = apart * sizes.element_bytes / (stage * layout.ep)
            yield from _of_weights(layout, each, layers, over // layout.ep, layout.ep, wires)
    activations = None
    if sizes.hidden is not None and sizes.layers is not None:
        # One micro-batch's, between two layers, on one GPU of the context.
        activations = sizes.batch / m * sizes.tokens / layout.cp * sizes.hidden * sizes.element_bytes
    if layout.tp > 1:
        why = f"tensor parallel: two all-reduces a layer, forward and backward each, are waited for ({_MEGATRON})"
        if activations is None or sizes.layers is None:
            yield None, "tensor parallel all-reduces: the model's width is not known"
        else:
            calls = m * sizes.layers / layout.pp * ((6 if recompute else 4) if training else 2)
            yield _collective("all_reduce", calls * activations, math.ceil(calls), layout.tp, 1, wires, "none", why)
    if layout.ep > 1:
        why = f"expert parallel: tokens go to their experts and back, forward and backward, are waited for ({_EXPERTS})"
        if sizes.hidden is None or not sizes.top_k:
            yield None, "expert parallel all-to-alls: the model's width or its experts are not known"
        else:
            # A tensor-parallel GPU sends its share of the sequence.
            rows = sizes.batch / m * sizes.tokens / (layout.cp * layout.tp) * sizes.top_k
            calls = math.ceil(m * sizes.expert_layers / layout.pp * ((6 if recompute else 4) if training else 2))
            yield _all_to_all(calls, rows * sizes.hidden * sizes.element_bytes, layout.ep, layout.tp, wires, why)
    if layout.pp > 1:
        why = f"pipeline: activations and gradients go to the next stage beside its products ({_PIPELINE})"
        if activations is None:
            yield None, "pipeline sends: the model's width is not known"
        else:
            sends = m * layout.interleave * (2 if training else 1)
            yield _sends("pipeline sends", sends, activations, layout.pp, layout.tp * layout.cp * layout.dp, wires, why)
    if layout.cp > 1:
        why = f"context parallel: keys and values go round the ring beside attention ({_RING})"
        if sizes.kv is None or sizes.layers is None:
            yield None, "context parallel sends: the model's width is not known"
        else:
            one = 2 * sizes.batch / m * sizes.tokens / layout.cp * sizes.kv * sizes.element_bytes / layout.tp
            rounds = m * sizes.layers / layout.pp * (layout.cp - 1) * (3 if training else 1)
            yield _sends("context sends", math.ceil(rounds), one, layout.cp, layout.tp, wires, why)


def _of_weights(
    layout: Layout, share: float, layers: int, over: int, apart: int, wires: Wires
) -> Iterator[tuple[Exchange | None, str]]:
    """Of a stage's `share` of bytes of parameters, held by `over` GPUs that are `apart` of one another's neighbours."""
    if over == 1:
        return
    m, stride = layout.microbatches, layout.tp * apart
    if layout.pp == 1:
        why = f"FSDP: two gathers of parameters and a scatter of gradients a micro-batch, beside products ({_ZERO})"
        yield _collective("all_gather", 2 * m * share, 2 * m * layers, over, stride, wires, "all", why)
        yield _collective("reduce_scatter", m * share, m * layers, over, stride, wires, "all", why)
    else:
        why = f"ZeRO-1 under a pipeline: gradients scattered, parameters gathered once a step ({_ZERO})"
        yield _collective("reduce_scatter", share, layers, over, stride, wires, "backward", why)
        yield _collective("all_gather", share, layers, over, stride, wires, "all", why)


def _all_to_all(
    calls: int, size_bytes: float, ranks: int, stride: int, wires: Wires, why: str
) -> tuple[Exchange | None, str]:
    """`calls` times, each GPU sends an equal part of `size_bytes` to each of the `ranks`: to those of its node by the
    link, to others by its own adapter, both at once."""
    name = f"all_to_all between {ranks} GPUs"
    here = min(ranks, max(1, wires.gpus_per_node // stride))
    across = wires.adapter or wires.across
    if (here > 1 and wires.within is None) or (here < ranks and across is None):
        return None, f"{name} of {calls * size_bytes:,.0f} bytes"
    parts = []
    if here > 1 and wires.within is not None:
        parts.append(((here - 1) / ranks, wires.within))
    if here < ranks and across is not None:
        parts.append(((ranks - here) / ranks, across))
    through = calls * size_bytes
    time = Seconds(
        max(through * part / bus.flops_per_s for part, bus in parts),
        max(through * part / bus.high for part, bus in parts),
        max(through * part / bus.low for part, bus in parts),
    )
    return Exchange(name, calls, time + _latency("all_to_all", ranks, math.ceil(ranks / here)) * calls, "none", why), ""


def _collective(
    kind: str, size_bytes: float, calls: int, ranks: int, stride: int, wires: Wires, beside: Beside, why: str
) -> tuple[Exchange | None, str]:
    bus, nodes = wires.of(ranks, stride)
    name = f"{kind} between {ranks} GPUs"
    if bus is None:
        return None, f"{name} of {size_bytes:,.0f} bytes"
    through = size_bytes * bus_factor(kind, ranks)
    wait = _latency(kind, ranks, nodes) * calls
    time = Seconds(through / bus.flops_per_s, through / bus.high, through / bus.low) + wait
    return Exchange(name, calls, time, beside, why), ""


def _sends(
    name: str, calls: int, size_bytes: float, ranks: int, stride: int, wires: Wires, why: str
) -> tuple[Exchange | None, str]:
    # A send has the adapter of its own GPU alone.
    bus = wires.within if ranks * stride <= wires.gpus_per_node else wires.adapter or wires.across
    if bus is None:
        return None, f"{name} of {calls * size_bytes:,.0f} bytes"
    through = calls * size_bytes
    time = Seconds(through / bus.flops_per_s, through / bus.high, through / bus.low)
    return Exchange(name, calls, time, "all", why), ""


# NCCL, src/graph/tuning.cc, baseLat and hwLat of the protocol for small messages: a start, and a hop by NVLink or by
# network, of a ring and of a tree.
_START_S, _RING_HOP_S, _TREE_HOP_S = 6.6e-6, (0.6e-6, 2.7e-6), (0.6e-6, 5.0e-6)


def _latency(kind: str, ranks: int, nodes: int) -> Seconds:
    """α of one call: the smaller of a ring's and a tree's by NCCL's own model, and within a factor of two of it."""
    rounds = 2 if kind == "all_reduce" else 1
    here = math.ceil(ranks / nodes)
    ring = rounds * ((ranks - nodes) * _RING_HOP_S[0] + (nodes - 1) * _RING_HOP_S[1])
    tree = rounds * (math.log2(here) * _TREE_HOP_S[0] + math.log2(nodes) * _TREE_HOP_S[1])
    value = _START_S + min(ring, tree)
    return Seconds(value, value / 2, value * 2)
