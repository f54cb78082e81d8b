"""Architectures of Hugging Face on real data, against a second reckoning from their modules (`oracle/modules.py`)."""

import importlib.util
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("transformers")

from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.counting.huggingface import count_config
from mfu_sdk.counting.layers import count_layers_once
from mfu_sdk.counting.routing import EvenRouting
from mfu_sdk.counting.stand_ins import stand_ins


def _oracle(name: str) -> ModuleType:
    # Tests are no package: the file is loaded by its path.
    path = Path(__file__).parent / "oracle" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


modules, tiny = _oracle("modules"), _oracle("tiny")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_an_architecture(name: str) -> None:
    """Forward, backward and attention under both conventions are those of the modules, and nothing is uncounted."""
    model = tiny.model(name)
    given = tiny.inputs(model)
    with modules.Oracle(model) as reckoned:
        tiny.outputs(model(**given))
    mode = CountingMode(model)
    with mode:
        tiny.outputs(model(**given)).backward()
    count = mode.result()
    assert count.uncounted == ()
    assert count.forward_flops == reckoned.forward
    assert count.attention_flops_full == reckoned.full
    assert count.attention_flops_exact == reckoned.exact_forward + reckoned.exact_backward
    assert count.backward_flops == reckoned.backward
    assert count.model_flops > 0


# Llama 4's experts all run on every token with data, and on those that chose them without.
SELDOM = {"Llama4ForCausalLM"}


def dtype(name: str) -> torch.dtype:
    # The one that all kernels take on meta tensors; xLSTM's code wants another.
    return torch.float32 if name == "xLSTMForCausalLM" else torch.bfloat16


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name in tiny.ARCHITECTURES if name not in SELDOM])
def test_without_data(name: str, tmp_path: Path) -> None:
    """A configuration of three times the layers counts what the model with data counts, module by module."""
    model = tiny.model(name, times=3)
    given = tiny.inputs(model)
    mode = CountingMode(model)
    with mode:
        tiny.outputs(model(**given)).backward()
    real = mode.result()
    path = tmp_path / "config.json"
    model.config.architectures, model.config.dtype = [name], dtype(name)
    model.config.to_json_file(path, use_diff=False)
    found = count_config(path, tiny.BATCH, 200 if "input_values" in given else tiny.TOKENS).count
    assert found.uncounted == ()
    assert (found.forward_flops, found.backward_flops) == (real.forward_flops, real.backward_flops)
    assert found.attention_flops_exact == real.attention_flops_exact
    assert found.attention_flops_full == real.attention_flops_full
    assert found.by_module == real.by_module


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_equal_layers_count_once(name: str) -> None:
    """Counting one layer of each kind is counting all of them: every number, operator by operator."""
    with torch.device("meta"):
        model = tiny.model(name, times=3).to(dtype(name))
    given = {
        key: value.to("meta", dtype(name) if value.is_floating_point() else None) if torch.is_tensor(value) else value
        for key, value in tiny.inputs(model).items()
    }

    def step() -> None:
        tiny.outputs(model(**given)).backward()

    with stand_ins(model), EvenRouting():
        # RWKV scales its weights the first time.
        step()
        model.zero_grad()
        mode = CountingMode(model)
        with mode:
            step()
        once = count_layers_once(model, step)
    every = mode.result()
    assert Counter({replace(op, calls=0): op.calls for op in once.ops}) == {
        replace(op, calls=0): op.calls for op in every.ops
    }
    assert replace(once, ops=()) == replace(every, ops=())
