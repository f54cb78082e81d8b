"""Count a Hugging Face model from its configuration alone: no weights, no memory, no device.

The model is built and run on meta tensors, which have shapes and no values, and layers that are alike run once
(`layers`), so any size counts in seconds. Mixtures of experts count as many rows as the tokens choose (`routing`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfu_sdk.errors import ConfigurationError, MissingDependencyError
from mfu_sdk.records import Count

if TYPE_CHECKING:
    from mfu_sdk.counting.dispatch import CountingMode


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """Experts that a router chooses among: their parameters in all, in `layers` layers of `number` experts, of which a
    token takes `top_k`; None where the configuration does not tell a number."""

    params: int
    layers: int
    number: int | None
    top_k: int | None


@dataclass(frozen=True, slots=True)
class ConfigCount:
    """The count of one step of a configured model, and what was counted.

    `inputs` maps each input to its shape; `seq` is None where the configuration itself decides the input's size.
    """

    model: str
    parameters: int
    batch: int
    seq: int | None
    backward: bool
    inputs: Mapping[str, tuple[int, ...]]
    count: Count
    notes: tuple[str, ...] = ()
    hidden: int | None = None
    layers: int | None = None
    kv_hidden: int | None = None
    experts: RoutedExperts | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data; `ops`, which is long, is left out."""
        plain = asdict(self)
        del plain["count"]["ops"]
        return plain


def count_config(
    path: Path | Mapping[str, Any],
    batch: int,
    seq: int | None = None,
    *,
    backward: bool = True,
    decode: bool = False,
    fused: bool = False,
    dtype: str | None = None,
) -> ConfigCount:
    """Count one step of `batch` samples of the model that the config.json at `path`, or its content, describes.

    A sample is a sequence of `seq` tokens, of which an encoder and a decoder each get `seq`; an image or a
    spectrogram of the configuration's size; or `seq` samples of a waveform. A model of text and images that generates
    text is counted on text alone.

    With `decode` a step is one token for each sequence, the last of `seq`, whose keys and values are held in a cache;
    `fused` counts the bytes of a compiled program with attention in one kernel (`fused_mode`), and then a forward alone
    has the logits of the last token only, as serving has; `dtype` is in place of the configuration's own.

    Raises `ConfigurationError` for a file that is not such a configuration, a model
    that cannot run on meta tensors or a missing `seq`, and `MissingDependencyError` without torch or transformers.
    """
    try:
        import torch
        import transformers  # noqa: F401 - asked for before it is needed
    except ImportError as missing:
        raise MissingDependencyError(
            f"counting from a configuration needs {missing.name}; install mfu-sdk[torch,hf]"
        ) from missing
    from mfu_sdk.counting.dispatch import CountingMode
    from mfu_sdk.counting.fused_mode import FusedMode, one_kernel_attention
    from mfu_sdk.counting.layers import count_layers_once
    from mfu_sdk.counting.routing import EvenRouting
    from mfu_sdk.counting.stand_ins import stand_ins

    fields = _read(path) if isinstance(path, Path) else dict(path)
    path = path if isinstance(path, Path) else Path(str(fields.get("model_type", "configuration")))
    wanted = None if dtype is None else getattr(torch, dtype)
    try:
        model_class, config = _model_class(fields)
        # Where it names no dtype: bf16, which models are trained and served in.
        with torch.device("meta"):
            model = model_class._from_config(config, dtype=wanted or config.dtype or torch.bfloat16)
    except Exception as error:
        # Configurations are checked in many ways, by classes of each library's own.
        raise ConfigurationError(f"{path}: no model can be built from it ({_line(error)})") from error
    inputs = _inputs(path, model, batch, 1 if decode else seq)
    accepted = inspect.signature(model.forward).parameters
    flags: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if fused and not backward and "logits_to_keep" in accepted:
        flags["logits_to_keep"] = 1
    if decode and (seq is None or "past_key_values" not in accepted or model.config.is_encoder_decoder):
        raise ConfigurationError(
            f"{path}: {type(model).__name__} with seq={seq} has no cache of a known length to decode with; "
            "give a decoder's configuration and the cache's length as seq"
        )

    def step() -> None:
        if decode:
            from mfu_sdk.counting.held_cache import held_cache

            flags.update(past_key_values=held_cache(model.config, seq or 1), use_cache=True)
        with torch.set_grad_enabled(backward):
            result = model(**inputs, **flags)
            if backward:
                _total(result.values()).backward()

    # Not in training mode: some models then drop layers at random. Dropout is free in either.
    model.eval()
    try:
        with ExitStack() as stack:
            mode: type[CountingMode] = CountingMode
            if fused:
                mode = FusedMode
                stack.enter_context(one_kernel_attention())
            stack.enter_context(stand_ins(model))
            stack.enter_context(EvenRouting())  # type: ignore[no-untyped-call]
            found = count_layers_once(model, step, mode=mode)
    except Exception as error:
        raise ConfigurationError(
            f"{path}: {type(model).__name__} does not run without data ({_line(error)}); "
            "build it and count a step of it with mfu.count"
        ) from error
    text = model.config.get_text_config()
    return ConfigCount(
        hidden=_number(text, "hidden_size"),
        layers=_number(text, "num_hidden_layers"),
        kv_hidden=_kv_hidden(text),
        experts=_experts(model, text),
        notes=_notes(model, inputs, decode=decode),
        model=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        batch=batch,
        seq=seq if decode or any(name in inputs for name in _SEQUENCES) else None,
        backward=backward,
        inputs={name: tuple(tensor.shape) for name, tensor in inputs.items()},
        count=found,
    )


def describe(found: ConfigCount) -> str:
    """A count in lines."""
    count = found.count
    sizes = ", ".join(f"{name} {' × '.join(map(str, shape))}" for name, shape in found.inputs.items())
    each = found.batch * (found.seq if found.seq and "input_ids" in found.inputs else 1)
    unit = "a token" if each != found.batch else "a sample"
    missing = ", ".join(f"{entry.op} ×{entry.calls}" for entry in count.uncounted[:5]) or "nothing"
    lines = [
        f"{found.model}, {_si(found.parameters)}parameters, {sizes}, "
        f"{'forward and backward' if found.backward else 'forward'}",
        f"  model        {_si(count.model_flops)}FLOP, {_si(count.model_flops / each)}FLOP {unit}",
        f"  forward      {_si(count.forward_flops)}FLOP",
        f"  backward     {_si(count.backward_flops)}FLOP",
        f"  attention    {_si(count.attention_flops_exact)}FLOP exact, "
        f"{_si(count.attention_flops_full)}FLOP over all pairs",
        f"  not counted  {missing} (coverage {count.coverage:.1%})",
        *(f"  note         {note}" for note in found.notes),
    ]
    return "\n".join(lines)


# --- the model ---------------------------------------------------------------------------------------------------

_TASKS = ("ZERO_SHOT_IMAGE_CLASSIFICATION", "MASKED_LM", "CAUSAL_LM", "IMAGE_CLASSIFICATION", "CTC")
_TASKS_OF_TWO = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")
"""Where a model's class is looked up if its configuration names none that transformers has: the first that fits."""


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_hook=_infinity)
        fields["model_type"]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: must be a JSON file, as config.json is ({error})") from error
    except (KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path}: must be a JSON object with a model_type, as config.json is; add the model's type"
        ) from error
    return dict(fields)


def _infinity(fields: dict[str, Any]) -> Any:
    # As transformers writes what JSON has no number for.
    return float(fields["__float__"]) if fields.keys() == {"__float__"} else fields


def _model_class(fields: dict[str, Any]) -> tuple[Any, Any]:
    """The class that the configuration names or its type stands for, and the configuration. Raises `ValueError`."""
    import transformers

    named = next(iter(fields.get("architectures") or ()), None)
    found: Any = getattr(transformers, named, None) if isinstance(named, str) else None
    known = hasattr(found, "_from_config") and hasattr(found, "config_class")
    kind = fields.pop("model_type")
    if known and kind not in transformers.CONFIG_MAPPING:
        # A type of the publisher's own, whose code is a class of transformers.
        config = found.config_class(**fields)
    else:
        config = transformers.AutoConfig.for_model(kind, **fields)
    if not known:
        tasks = _TASKS_OF_TWO if config.is_encoder_decoder else _TASKS
        names = (*(f"MODEL_FOR_{task}_MAPPING" for task in tasks), "MODEL_MAPPING")
        mappings = (getattr(transformers, name, {}) for name in names)
        found = next((mapping[type(config)] for mapping in mappings if type(config) in mapping), None)
        # Some types stand for several classes.
        found = found[0] if isinstance(found, (tuple, list)) else found
    if found is None:
        raise ValueError(f"transformers has no model for model_type {kind!r}; name its class under architectures")
    return found, config


def _line(error: Exception) -> str:
    first = " ".join(str(error).split()) or type(error).__name__
    return first if len(first) <= 240 else f"{first[:240]} …"


# --- its inputs --------------------------------------------------------------------------------------------------

_SEQUENCES = ("input_ids", "decoder_input_ids", "input_values")


def _inputs(path: Path, model: Any, batch: int, seq: int | None) -> dict[str, Any]:
    """Inputs without data, by name."""
    import torch

    config, accepted = model.config, inspect.signature(model.forward).parameters
    wanted = [model.main_input_name]
    if config.is_encoder_decoder and "decoder_input_ids" in accepted:
        wanted.append("decoder_input_ids")
    if wanted == ["input_ids"] and "pixel_values" in accepted and not model.can_generate():
        # Two towers, of which each wants its own.
        wanted.append("pixel_values")

    def size(*names: str) -> Any:
        # Of the configuration, or of the part that is about images or sound.
        for part in (config, getattr(config, "vision_config", None), getattr(config, "audio_config", None)):
            for name in names:
                value = getattr(part, name, None)
                if value is not None:
                    return value
        raise ConfigurationError(
            f"{path}: {type(model).__name__} takes {wanted[0]}, whose size no {' or '.join(names)} gives; add one"
        )

    def length() -> int:
        if seq is None:
            raise ConfigurationError(f"{path}: {type(model).__name__} takes a sequence; give its length with --seq")
        return seq

    made = {}
    shape: tuple[int, ...]
    for name in wanted:
        if name in ("input_ids", "decoder_input_ids"):
            made[name] = torch.zeros(batch, length(), dtype=torch.long, device="meta")
            continue
        if name == "pixel_values":
            height, width = _pair(size("image_size"))
            shape = (size("num_channels"), height, width)
        elif name == "input_features" and hasattr(config, "max_source_positions"):
            # Whisper's encoder halves its frames once.
            shape = (size("num_mel_bins"), 2 * config.max_source_positions)
        elif name == "input_values" and hasattr(config, "num_mel_bins"):
            shape = (size("max_length"), config.num_mel_bins)
        elif name == "input_values":
            shape = (length(),)
        else:
            raise ConfigurationError(
                f"{path}: {type(model).__name__} takes {name}, which is neither text, an image nor sound; "
                "build the model and count a step of it with mfu.count"
            )
        made[name] = torch.zeros(batch, *shape, dtype=model.dtype, device="meta")
    return made


_POSITIONS = ("max_target_positions", "max_position_embeddings", "n_positions", "n_ctx")


def _notes(model: Any, inputs: dict[str, Any], *, decode: bool) -> tuple[str, ...]:
    """What a reader should know of what was counted."""
    notes = []
    config = model.config
    longest = max((tensor.shape[1] for name, tensor in inputs.items() if name in _SEQUENCES[:2]), default=0)
    positions = next((n for name in _POSITIONS if isinstance(n := getattr(config, name, None), int) and n > 0), None)
    if positions is not None and longest > positions:
        notes.append(f"{longest:,} tokens are more than the {positions:,} positions of the configuration")
    for part, name in (("vision_config", "pixel_values"), ("audio_config", "input_features")):
        if getattr(config, part, None) is not None and name not in inputs:
            notes.append(f"only text was counted: no {name} were given, though the parameters are of all parts")
    if decode and getattr(config.get_text_config(), "kv_lora_rank", None) is not None:
        notes.append("keys and values of every head are cached, as transformers does; what serves it keeps the latent")
    kinds = {type(module).__name__ for module in model.modules()}
    if any("mamba" in kind.lower() or "deltanet" in kind.lower() for kind in kinds):
        notes.append("scans count as transformers' own code computes them; a fused kernel's recurrence costs less")
    return tuple(notes)


def _number(text: Any, name: str) -> int | None:
    """A whole number of the configuration; None where it has none, or one for each stage of the model."""
    value = getattr(text, name, None)
    return value if isinstance(value, int) else None


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")


def _experts(model: Any, text: Any) -> RoutedExperts | None:
    """What lies in modules that are called `experts`, as transformers calls the routed ones."""
    params, layers = 0, set()
    for name, parameter in model.named_parameters():
        before, found, _ = name.partition(".experts.")
        if found:
            params += parameter.numel()
            layers.add(before)
    if not layers:
        return None
    number, chosen = (
        next((value for name in names if (value := _number(text, name))), None) for names in (_EXPERTS, _CHOSEN)
    )
    return RoutedExperts(params, len(layers), number, chosen)


def _kv_hidden(text: Any) -> int | None:
    """The width of all keys of a token, where the configuration tells it."""
    hidden, all_heads = _number(text, "hidden_size"), _number(text, "num_attention_heads")
    heads = _number(text, "num_key_value_heads") or all_heads
    size = _number(text, "head_dim") or (hidden // all_heads if hidden and all_heads else None)
    return heads * size if heads and size else None


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return size["height"], size["width"]
    return (size[0], size[1]) if isinstance(size, (list, tuple)) else (size, size)


def _total(results: Iterable[Any]) -> Any:
    """The sum over all results that gradients can come from."""
    import torch

    return sum(value.sum() for value in results if isinstance(value, torch.Tensor) and value.requires_grad)


def _si(value: float) -> str:
    """`value` with three decimals and the prefix of its size, a space between; the unit follows."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:,.3f} {prefix}"
    return f"{value:,.0f} "
