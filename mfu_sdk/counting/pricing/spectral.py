"""Fourier transforms."""

import math
from collections.abc import Mapping
from typing import Final

from mfu_sdk.counting import formulas
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.pricing.price import Price, plain

_SOURCE: Final = "FFTW's benchFFT"


def _complex(call: Call) -> int:
    shape = call.shape("self")
    return formulas.fourier(math.prod(shape), math.prod(shape[dim] for dim in call["dim"]), real=False)


def _real(real: str | None) -> Price:
    """From or to real numbers; `real` names the real operand, None says that it is the result."""

    def flops(call: Call) -> int:
        shape = call.out.shape if real is None else call.shape(real)
        return formulas.fourier(math.prod(shape), math.prod(shape[dim] for dim in call["dim"]), real=True)

    return plain(flops, "self", "2.5·N·log2 N a transform of N real numbers, rounded down", _SOURCE)


_COMPLEX: Final = plain(
    _complex, "self", "5·N·log2 N a transform of N numbers, over all its dimensions; rounded down", _SOURCE
)

PRICES: Final[Mapping[str, Price]] = {
    **dict.fromkeys(("aten::_fft_c2c", "prims::fft_c2c"), _COMPLEX),
    **dict.fromkeys(("aten::_fft_r2c", "prims::fft_r2c"), _real("self")),
    **dict.fromkeys(("aten::_fft_c2r", "prims::fft_c2r"), _real(None)),
}
