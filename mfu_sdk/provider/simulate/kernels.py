"""How long kernels take: a roofline whose compute side depends on the shape of the product.

A product of m × n × k is cut into tiles; the last wave of tiles leaves SMs idle, tiles at the edge are padded, and each
tile has a prologue (NVIDIA, "Matrix multiplication background user's guide": tile and wave quantization). Attention:
FlashAttention-2 reaches about half and FlashAttention-3 up to three quarters of the dense peak (arXiv 2307.08691,
2407.08608); one that writes its scores moves them through memory several times. Elementwise work moves 34 bytes a token
and unit of width forward (Korthikanti et al., arXiv 2205.05198, section 4).
"""

import math
from dataclasses import dataclass, replace

from mfu_sdk.provider.simulate.models import Transformer, Vision
from mfu_sdk.provider.simulate.silicon import Gpu

_TILE_M, _TILE_N = 128, 256
_PROLOGUE_K = 192.0
LARGEST_PRODUCT, MEMORY = 0.76, 0.88
"""What the largest product and the longest copy reach of the peaks."""

_FLASH = 0.52
_ELEMENTWISE_BYTES = 34.0
# Adam in mixed precision: fp32 weights and two moments read and written, gradients read, 16-bit weights written.
_OPTIMIZER_BYTES = 28.0
_LAUNCH_S = 6e-6
_KERNELS_A_LAYER = 14


@dataclass(frozen=True, slots=True)
class Work:
    """What a device does in a step at its reference clock: seconds on the SMs and on memory, FLOPs, bytes, launches.

    `tensor_s` shrinks with a faster clock, `memory_s` does not. `tensor_flops` is what tensor pipes execute, padding
    included.
    """

    tensor_s: float = 0.0
    memory_s: float = 0.0
    model_flops: float = 0.0
    hardware_flops: float = 0.0
    tensor_flops: float = 0.0
    bytes_moved: float = 0.0
    launches: float = 0.0

    def spread(self, share: float) -> "Work":
        """The same on a `share` of the device, where it takes that much longer."""
        return replace(self, tensor_s=self.tensor_s / share, memory_s=self.memory_s / share)

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, name) + getattr(other, name) for name in _FIELDS))

    def times(self, factor: float) -> "Work":
        """The same `factor` times over."""
        return Work(*(getattr(self, name) * factor for name in _FIELDS))

    @property
    def busy_s(self) -> float:
        """Seconds at the reference clock."""
        return self.tensor_s + self.memory_s

    @property
    def launch_s(self) -> float:
        """Seconds that the host takes to launch it."""
        return self.launches * _LAUNCH_S


def product_efficiency(gpu: Gpu, m: float, n: float, k: float) -> float:
    """Share of the peak that a product of m × n × k reaches."""
    tiles = math.ceil(m / _TILE_M) * math.ceil(n / _TILE_N)
    waves = tiles / gpu.sms
    padding = (m * n) / (tiles * _TILE_M * _TILE_N)
    # Split-k and smaller tiles fill a part of what one wave of large tiles leaves idle.
    filled = waves / math.ceil(waves) if waves > 1 else waves**0.4
    return LARGEST_PRODUCT * filled * padding * k / (k + _PROLOGUE_K)


def _padding(m: float, n: float) -> float:
    return math.ceil(m / _TILE_M) * math.ceil(n / _TILE_N) * _TILE_M * _TILE_N / (m * n)


_FIELDS = ("tensor_s", "memory_s", "model_flops", "hardware_flops", "tensor_flops", "bytes_moved", "launches")


@dataclass(frozen=True, slots=True)
class Kernels:
    """What is installed and switched: dtype of products, attention, recomputation, and how good the library's are.

    `converted` is the share of layers that run in `other_dtype`; `unfused` the share whose attention writes its scores;
    `recomputed` the share that is run again in backward; `quality` multiplies the speed of products.
    """

    other_dtype: str = "tf32"
    converted: float = 0.0
    unfused: float = 0.0
    recomputed: float = 0.0
    quality: float = 1.0


def training(gpu: Gpu, model: Transformer, sequences: float, seq: int, tp: int, kernels: Kernels) -> Work:
    """Forward and backward of `sequences` × `seq` tokens on one of `tp` ranks that share each product."""
    tokens = sequences * seq
    layer = Work()
    for n, k in model.products:
        layer += _product(gpu, tokens, max(n / tp, 1), k, kernels).times(3)
    layer += _attention(gpu, model, sequences, seq, tp, kernels)
    moved = 3 * _ELEMENTWISE_BYTES * model.hidden * tokens / tp
    layer += Work(memory_s=_memory_s(gpu, moved), bytes_moved=moved, launches=3 * _KERNELS_A_LAYER)
    again = layer.times(kernels.recomputed / 3)
    layer += replace(again, model_flops=0.0)
    head = _product(gpu, tokens, model.vocabulary / tp, model.hidden, kernels).times(3)
    return layer.times(model.layers) + head


def optimizer(gpu: Gpu, parameters: float) -> Work:
    """One step of Adam over `parameters` of this rank."""
    moved = _OPTIMIZER_BYTES * parameters
    return Work(memory_s=_memory_s(gpu, moved), bytes_moved=moved, launches=20)


def vision_training(gpu: Gpu, model: Vision, samples: float, kernels: Kernels) -> Work:
    """Forward and backward of `samples` images."""
    return _vision(gpu, model, samples, gpu.sms, kernels).times(3) + optimizer(gpu, model.parameters)


def vision_forward(gpu: Gpu, model: Vision, samples: float, share: float = 1.0) -> Work:
    """Forward of `samples` on a `share` of the GPU's SMs and memory."""
    found = _vision(gpu, model, samples, max(1, round(gpu.sms * share)), Kernels())
    weights = 2 * model.parameters
    moved = Work(memory_s=_memory_s(gpu, weights), bytes_moved=weights)
    return (found + moved).spread(share)


def decode(gpu: Gpu, model: Transformer, running: float, context: float, tp: int) -> Work:
    """One token for each of `running` sequences with `context` tokens in the cache, on one of `tp` ranks.

    Weights and caches are read; products overlap with that, so the longer of the two counts.
    """
    moved = (2 * model.parameters + running * context * model.kv_bytes) / tp
    flops = running * model.forward_flops(context) / tp
    # Below a tile's height products are padded in m, which memory hides until the batch is large.
    tensor_s = flops / (gpu.bf16_flops_per_s * LARGEST_PRODUCT)
    memory_s = _memory_s(gpu, moved)
    bound_s = max(tensor_s, memory_s)
    return Work(
        tensor_s if tensor_s >= memory_s else 0.0,
        bound_s - (tensor_s if tensor_s >= memory_s else 0.0),
        flops,
        flops,
        flops * max(1.0, 16 * math.ceil(running / 16) / max(running, 1)),
        moved,
        launches=0.0,  # decode replays CUDA graphs
    )


def prefill(gpu: Gpu, model: Transformer, tokens: float, tp: int) -> Work:
    """One prompt of `tokens`."""
    work = Work()
    for n, k in model.products:
        work += _product(gpu, tokens, max(n / tp, 1), k, Kernels())
    attention = 4 * model.hidden * tokens * (tokens + 1) / 2 / tp
    work += Work(attention / (gpu.bf16_flops_per_s * _FLASH), 0.0, attention, attention, attention)
    moved = _ELEMENTWISE_BYTES * model.hidden * tokens / tp
    work += Work(memory_s=_memory_s(gpu, moved), bytes_moved=moved, launches=_KERNELS_A_LAYER)
    return work.times(model.layers)


def _product(gpu: Gpu, m: float, n: float, k: float, kernels: Kernels) -> Work:
    flops = 2.0 * m * n * k
    efficiency = product_efficiency(gpu, m, n, k) * kernels.quality
    moved = 2 * (m * k + n * k + m * n)
    inverse = (1 - kernels.converted) / gpu.bf16_flops_per_s + kernels.converted / gpu.flops_per_s(kernels.other_dtype)
    compute_s = flops / efficiency * inverse
    memory_s = _memory_s(gpu, moved * (1 + kernels.converted))
    executed = flops * _padding(m, n) * _on_tensor(gpu, kernels)
    if compute_s >= memory_s:
        return Work(compute_s, 0.0, flops, flops, executed, moved, 0.0)
    return Work(0.0, memory_s, flops, flops, executed, moved, 0.0)


def _attention(gpu: Gpu, model: Transformer, sequences: float, seq: int, tp: int, kernels: Kernels) -> Work:
    """Causal attention of one layer, forward and backward."""
    pairs = sequences * seq * (seq + 1) / 2
    needed = 4 * model.hidden * pairs * 3 / tp
    # The fused backward computes the scores again: 3.5 forwards in all, not 3 (arXiv 2205.14135, appendix B).
    fused_flops = needed * 3.5 / 3
    fused = Work(fused_flops / (gpu.bf16_flops_per_s * _FLASH), 0.0, needed, fused_flops, fused_flops)
    if kernels.unfused == 0:
        return fused
    full = needed * 2 * seq / (seq + 1)
    # Scores and probabilities in 16 bits, masked, soft-maxed, dropped out: eight passes forward and backward.
    moved = 8 * 2.0 * sequences * model.heads * seq * seq / tp
    unfused = Work(full / (gpu.bf16_flops_per_s * 0.6), _memory_s(gpu, moved), needed, full, full, moved, launches=20)
    return fused.times(1 - kernels.unfused) + unfused.times(kernels.unfused)


def _vision(gpu: Gpu, model: Vision, samples: float, sms: int, kernels: Kernels) -> Work:
    flops, moved = model.sample_flops * samples, model.sample_bytes * samples
    # Convolutions as products of a sample's positions (some 200 at the widest stage) × width × 4 widths. Layers differ
    # in shape, so what one of them leaves idle in its last wave averages out.
    waves = math.ceil(200 * samples / _TILE_M) * math.ceil(model.width / _TILE_N) / sms
    depth = 4 * model.width / (4 * model.width + _PROLOGUE_K)
    efficiency = LARGEST_PRODUCT * waves / (waves + 0.5) * depth * kernels.quality
    inverse = (1 - kernels.converted) / gpu.bf16_flops_per_s + kernels.converted / gpu.flops_per_s(kernels.other_dtype)
    executed = 1.05 * flops * _on_tensor(gpu, kernels)
    return Work(flops / efficiency * inverse, _memory_s(gpu, moved), flops, flops, executed, moved, launches=180)


def _on_tensor(gpu: Gpu, kernels: Kernels) -> float:
    """How long pipes are busy over what bf16 would take: TF32 takes twice the cycles, fp32 none of theirs."""
    other = gpu.bf16_flops_per_s / gpu.tf32_flops_per_s if kernels.other_dtype == "tf32" else 0.0
    return 1 - kernels.converted + kernels.converted * other


def _memory_s(gpu: Gpu, moved_bytes: float) -> float:
    return moved_bytes / (gpu.memory_bytes_per_s * MEMORY)
