"""Count a Hugging Face causal language model from its configuration alone: no weights, no memory, no device.

The model is built and run on meta tensors, which have shapes and no values, so any size counts in seconds. What
depends on values is not seen: a mask that the model computes as a tensor (a sliding window shorter than the
sequence) is priced over all pairs, and `attention_flops_exact` is then an upper bound.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mfu_sdk.counting.dispatch import count
from mfu_sdk.errors import ConfigurationError, MissingDependencyError
from mfu_sdk.records import Count


@dataclass(frozen=True, slots=True)
class ConfigCount:
    """The count of one step of a configured model, and what was counted."""

    model: str
    parameters: int
    batch: int
    seq: int
    backward: bool
    count: Count

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data; `ops`, which is long, is left out."""
        plain = asdict(self)
        del plain["count"]["ops"]
        return plain


def count_config(path: Path, batch: int, seq: int, *, backward: bool = True) -> ConfigCount:
    """Count one step of `batch` sequences of `seq` tokens of the model that the config.json at `path` describes.

    Raises `ConfigurationError` for a file that is not such a configuration or a model that cannot run on meta
    tensors, and `MissingDependencyError` without torch or transformers.
    """
    try:
        import torch
        import transformers
    except ImportError as missing:
        raise MissingDependencyError(
            f"counting from a configuration needs {missing.name}; install mfu-sdk[torch,hf]"
        ) from missing
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        kind = fields.pop("model_type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path}: must be a JSON object with a model_type, as config.json is ({error})"
        ) from error
    try:
        config = transformers.AutoConfig.for_model(kind, **fields)
        # bf16 is what these models are trained and served in, and some kernels take nothing else.
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            tokens = torch.zeros(batch, seq, dtype=torch.long)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: no causal language model can be built from it ({error})") from error

    def step() -> None:
        # An empty cache keeps the model from looking at values to find out whether sequences are packed.
        cache = transformers.DynamicCache(config=config)
        with torch.set_grad_enabled(backward):
            logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
            if backward:
                logits.sum().backward()

    model.train(backward)
    try:
        found = count(step)
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigurationError(f"{path}: {kind} does not run on meta tensors ({error})") from error
    return ConfigCount(type(model).__name__, sum(p.numel() for p in model.parameters()), batch, seq, backward, found)


def describe(found: ConfigCount) -> str:
    """A count in lines."""
    count = found.count
    tokens = found.batch * found.seq
    missing = ", ".join(f"{entry.op} ×{entry.calls}" for entry in count.uncounted[:5]) or "nothing"
    lines = [
        f"{found.model}, {_si(found.parameters)}parameters, {found.batch} × {found.seq} tokens, "
        f"{'forward and backward' if found.backward else 'forward'}",
        f"  model        {_si(count.model_flops)}FLOP, {_si(count.model_flops / tokens)}FLOP a token",
        f"  forward      {_si(count.forward_flops)}FLOP",
        f"  backward     {_si(count.backward_flops)}FLOP",
        f"  attention    {_si(count.attention_flops_exact)}FLOP exact, "
        f"{_si(count.attention_flops_full)}FLOP over all pairs",
        f"  not counted  {missing} (coverage {count.coverage:.1%})",
    ]
    return "\n".join(lines)


def _si(value: float) -> str:
    """`value` with three decimals and the prefix of its size, a space between; the unit follows."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:,.3f} {prefix}"
    return f"{value:,.0f} "
