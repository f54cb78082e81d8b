"""A GPU's time by what its kernels do: from a trace of kernels to seconds of products, streaming and communication."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

Kind = Literal["product", "streaming", "communication", "unknown"]
# While kernels of several kinds run side by side, the time is the first one's: what hides a collective is no loss.
_ORDER: Final[tuple[Kind, ...]] = ("product", "streaming", "unknown", "communication")
MOST_UNKNOWN: Final = 0.05
"""The share of the busy time that kernels of unknown names may have, before the split says nothing."""

# NCCL and RCCL (ncclDevKernel_AllReduce_Sum_bf16_RING_LL), NVSHMEM, and torch's symmetric memory (multimem_all_reduce).
_COMMUNICATION: Final = re.compile(
    r"nccl|rccl|nvshmem|multimem_|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|send_?recv", re.IGNORECASE
)
# What Inductor writes names itself: templates of products (tem) and of attention, pointwise, reductions.
_INDUCTOR: Final = re.compile(r"triton_(tem|poi|red|per|for|mix|spl)_")
# cuBLAS has gemm in its names, or nvjet since Hopper; cuDNN what a convolution is for; hipBLASLt the indices of what it
# contracts. To these come CUTLASS, flash-attention, xformers, and products that programs write in Triton.
_PRODUCTS: Final = re.compile(
    r"gemm|gemv|nvjet|cutlass|xmma|wgmma|cijk_|convol|conv[123_]|conv\b|wgrad|dgrad|fprop|winograd|flash|fmha|attention"
    r"|attn|matmul|splitk|\bdot_kernel|_mm(?:_|\b)|_mma(?:_|\b)",
    re.IGNORECASE,
)
_STREAMING: Final = re.compile(
    r"at::native|at_cuda_detail|cub::|thrust|elementwise|reduc|norm|softmax|copy|fill|memset|cat|index|gather|scatter"
    r"|embedding|dropout|multi_tensor|adam|sgd|foreach|optimizer|sort|scan|topk|loss|entropy|rope|rotary|swiglu|silu|gelu"
    r"|relu|transpose|permute|pad|rand|philox|quant|cast|convert|bias|mask|pool|histogram|dequant",
    re.IGNORECASE,
)


class Kernel(NamedTuple):
    """One kernel, copy or fill on the device: from `start_ns` to `end_ns` of the device's time."""

    kind: Kind
    start_ns: int
    end_ns: int


class Spent(NamedTuple):
    """Seconds in which some kernel ran, each charged once: to products, else to streaming, else to communication.

    So `communication_s` is what no work hid. `unknown_s` is the time of kernels of unknown names.
    """

    products_s: float
    streaming_s: float
    communication_s: float
    unknown_s: float

    @property
    def is_told(self) -> bool:
        """Whether so little is unknown that the rest says how the time was spent."""
        busy_s = self.products_s + self.streaming_s + self.unknown_s
        return busy_s > 0 and self.unknown_s <= MOST_UNKNOWN * busy_s


def kind_of(name: str) -> Kind:
    """What a kernel does, by its name: libraries name theirs after what they compute."""
    if inductor := _INDUCTOR.search(name):
        return "product" if inductor[1] == "tem" else "streaming"
    if _COMMUNICATION.search(name):
        return "communication"
    # Its arguments name functors and layouts, which are not what it does; of CUTLASS they name the operation too.
    does = name.partition("<")[0]
    if _PRODUCTS.search(does):
        return "product"
    return "streaming" if _STREAMING.search(does) else "unknown"


def spent(kernels: Iterable[Kernel]) -> Spent:
    """The time in which they ran. Kernels may overlap; one that ends before it begins has no time."""
    edges: list[tuple[int, int, int]] = []
    for kernel in kernels:
        if kernel.end_ns > kernel.start_ns:
            rank = _ORDER.index(kernel.kind)
            edges += [(kernel.start_ns, 1, rank), (kernel.end_ns, -1, rank)]
    edges.sort()
    running, taken_ns, last_ns = [0] * len(_ORDER), [0] * len(_ORDER), 0
    for at_ns, change, rank in edges:
        for first, number in enumerate(running):
            if number:
                taken_ns[first] += at_ns - last_ns
                break
        running[rank] += change
        last_ns = at_ns
    by_kind = dict(zip(_ORDER, (ns / 1e9 for ns in taken_ns), strict=True))
    return Spent(by_kind["product"], by_kind["streaming"], by_kind["communication"], by_kind["unknown"])
