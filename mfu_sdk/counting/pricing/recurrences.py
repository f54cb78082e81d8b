"""LSTM, GRU and RNN layers that run as one operator; quantised ones are `quantized`'s."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mfu_sdk.counting import formulas
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.pricing.price import Price, plain

WORDS: Final = "2·steps·batch·Σ rows·columns of the weight matrices"

_BACKWARD: Final = "a forward each for the gradients of inputs and of weights"


def rows(call: Call, x: str = "input") -> int:
    """Steps × batch, of a packed batch too."""
    return math.prod(call.shape(x)[:-1])


def _layers(weights: Callable[[Call], list[Sequence[int]]], passes: Callable[[Call], int], words: str = WORDS) -> Price:
    return plain(lambda call: passes(call) * formulas.recurrent(rows(call), weights(call)), "input", words)


def _four_weights(first: int, passes: int) -> Price:
    # The weights are four arguments: weight0 … weight3 forward, weight1 … weight4 backward.
    names = [f"weight{first + i}" for i in range(4)]
    return _layers(
        lambda call: [call.shape(name) for name in names], lambda _: passes, WORDS if passes == 1 else _BACKWARD
    )


def _listed(name: str, *, backward: bool = False) -> Price:
    # The gradient of the input and state is one pass over the weights, that of the weights another.
    def passes(call: Call) -> int:
        return 1 + bool((call.get("output_mask") or (True,) * 4)[3]) if backward else 1

    return _layers(lambda call: [weight.shape for weight in call[name]], passes, _BACKWARD if backward else WORDS)


PRICES: Final[Mapping[str, Price]] = {
    "aten::mkldnn_rnn_layer": _four_weights(0, passes=1),
    "aten::mkldnn_rnn_layer_backward": _four_weights(1, passes=2),
    "aten::_cudnn_rnn": _listed("weight"),
    "aten::_cudnn_rnn_backward": _listed("weight", backward=True),
    "aten::miopen_rnn": _listed("weight"),
    "aten::miopen_rnn_backward": _listed("weight", backward=True),
    "aten::_lstm_mps": _listed("params"),
    "aten::lstm_mps_backward": _listed("params", backward=True),
}
