"""Published training runs: our count, said in each source's own convention, gives the figure that it printed.

The rows lie beside the repository, not in it. A model is built from its published shape on meta tensors and counted;
what the source counts otherwise (attention in full or in half, no router, every parameter) is done to the count here.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")

DATA = Path(__file__).parents[3] / "shared" / "data" / "published_mfu.json"
if not DATA.exists():
    pytest.skip(f"the published rows are not beside this checkout: no {DATA}", allow_module_level=True)

Row = Mapping[str, Any]
ROWS: dict[str, Row] = {row["id"]: row for row in json.loads(DATA.read_text(encoding="utf-8"))}
BEYOND_ROUNDING = 0.002
UNCHECKED = {
    "tflops_ratio": "prints TFLOP/s and their share of the peak, and no throughput that FLOPs would follow from",
    "none": "says by no convention how its FLOPs were counted",
}


def _oracle(name: str) -> ModuleType:
    # Tests are no package: the file is loaded by its path.
    path = Path(__file__).parent / "oracle" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"oracle_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


decoder = _oracle("decoder")


# --- our count of a row's model, one sequence, forward and backward -------------------------------------------------


class Counted:
    """The parts of a count that conventions differ in, and the parameters of the model that was counted."""

    def __init__(self, row: Row) -> None:
        shape, options, length = row["hf_config"], row["formula_opts"], row["seq_len"]
        slides = options.get("swa")
        # Sources that do not know of the window count every layer as a full one; Gemma 4's rows name no option.
        window = slides is not None or "ple_dim" in shape
        gated = options.get("gated_override", shape["gated_mlp"])
        kinds = decoder.kinds(shape, window=window, gated=gated, head_dim=options.get("head_dim_override"))
        self.layers = [(decoder.layer(kind, length), kind, times) for kind, times in kinds.items()]
        hidden, vocabulary, number = shape["hidden_size"], shape["vocab_size"], shape["num_hidden_layers"]
        self.head = decoder.linear(hidden, vocabulary, length)
        self.extra = 0
        if options.get("mtp"):
            # One more layer, one more head, and the product that joins the two inputs.
            last = self.layers[-1]
            self.layers[-1] = (*last[:2], last[2] + options["mtp"])
            self.extra += self.head.dense + decoder.linear(2 * hidden, hidden, length).dense
        if "ple_dim" in shape:
            # Embeddings a layer: a projection for all, then down and up in each.
            width = shape["ple_dim"]
            self.extra += number * (
                decoder.linear(hidden, width, length).dense * 2 + decoder.linear(width, hidden, length).dense
            )
        self.dense = sum(part.dense * times for part, _, times in self.layers)
        self.router = sum(part.router * times for part, _, times in self.layers)
        self.full = sum(part.full * times for part, _, times in self.layers)
        self.exact = sum(part.exact * times for part, _, times in self.layers)
        # Parameters that no product touches, as far as the layers do not have them: tables, positions, the last norm.
        places = shape.get("n_positions", 0)
        self.untouched = (
            sum(part.untouched * times for part, _, times in self.layers)
            + (0 if shape["tie_word_embeddings"] else vocabulary * hidden)
            + (length if isinstance(places, str) else places) * hidden
            + hidden * (2 if shape.get("bias") else 1)
        )
        self.length = length

    @property
    def model(self) -> int:
        """Every product but attention's and the router's."""
        return self.dense + self.head.dense + self.extra

    def six_n(self, stated: float) -> float:
        """Six FLOPs a token for every parameter: our products, and as much for what no product touches.

        `stated`: how many parameters the source says there are, which ours must be to within its rounding.
        """
        ours = self.model + 6 * self.length * self.untouched
        missing = 6 * self.length * stated - ours
        assert abs(missing) < 0.006 * ours
        return ours + missing

    def attention(self, causal: str, slides: str | None) -> float:
        """Attention as a source counts it: "full", "half" or "exact" pairs, and sliding layers in its own way."""
        total = 0.0
        for part, kind, times in self.layers:
            if kind.window is not None and slides in ("exact", "maxtext"):
                one = part.exact
            elif kind.window is not None and slides == "maxtext_v015":
                # Halved once more: the window was taken for a whole triangle.
                one = part.full * kind.window / self.length / 2
            else:
                one = {"full": part.full, "half": part.full / 2, "exact": part.exact}[causal]
            total += one * times
        return total


@cache
def _counted(key: str) -> Counted:
    return Counted(json.loads(key))


def counted(row: Row) -> Counted:
    """The count of a row's model at its length, once for all rows that share them."""
    kept = {name: row[name] for name in ("hf_config", "formula_opts", "seq_len")}
    return _counted(json.dumps(kept, sort_keys=True))


# --- the sources' conventions: FLOPs of one sequence, of the model and of the hardware -----------------------------


Flops = tuple[float, float | None]


def _matmul(row: Row, found: Counted) -> Flops:
    options = row["formula_opts"]
    router = found.router if options.get("router") else 0
    # Gemma 4's rows name no option: as MaxText counts, half of a triangle and windows exactly.
    causal, slides = (options["causal"], options.get("swa")) if options else ("half", "maxtext")
    return found.model + router + found.attention(causal, slides), None


def _lora(row: Row, found: Counted) -> Flops:
    # Frozen weights take no gradient: two thirds; the adapters, which the source does not size, are left out.
    return _matmul(row, found)[0] * 2 / 3, None


def _palm(row: Row, found: Counted) -> Flops:
    return found.six_n(row["formula_opts"]["N"]) + found.full, None


def _llmfoundry(row: Row, found: Counted) -> Flops:
    model, _ = _palm(row, found)
    return model, model * (4 / 3 if row["activation_checkpointing"] else 1)


def _korth(row: Row, found: Counted) -> Flops:
    # It doubles attention for its recomputation, of which the forward alone would be a third.
    return found.model + found.full, found.model + 2 * found.full


def _swa59(row: Row, found: Counted) -> Flops:
    return found.model + 0.59 * found.full, None


def _sc21(row: Row, found: Counted) -> Flops:
    # The layers' forward once more, the head's not.
    return (found.dense + found.full) * 4 / 3 + found.head.dense, None


def _layers_only(row: Row, found: Counted) -> Flops:
    return found.dense * 4 / 3, None


def _six_n(row: Row, found: Counted) -> Flops:
    return found.six_n(row["formula_opts"]["N"]), None


def _two_n(row: Row, found: Counted) -> Flops:
    return found.six_n(row["formula_opts"]["N"]) / 3, None


def _half(row: Row, found: Counted) -> Flops:
    return found.six_n(row["formula_opts"]["N"]) + found.full / 2, None


def _share(row: Row, found: Counted) -> Flops:
    return found.model + found.full / 2, None


def _llmq(row: Row, found: Counted) -> Flops:
    # Ideal time at each dtype's own peak, said as FLOPs at bf16's.
    options = row["formula_opts"]
    faster = options["peak_fp8"] / options["peak_bf16"] if row["dtype"] == "fp8" else 1
    return found.dense / faster + found.head.dense + found.full / 2, None


CONVENTIONS: dict[str, Callable[[Row, Counted], Flops]] = {
    "matmul": _matmul,
    "matmul_lora": _lora,
    "palm": _palm,
    "llmfoundry": _llmfoundry,
    "korth": _korth,
    "korth_model": _korth,
    "korth_swa59": _swa59,
    "sc21_hw": _sc21,
    "8x12lh2": _layers_only,
    "6n": _six_n,
    "infer_2n": _two_n,
    "llmc": _half,
    "attn_share": _share,
    "llmq": _llmq,
}


def errors(row: Row) -> dict[str, tuple[float, float]]:
    """For every figure that the row prints: our relative error and what is allowed."""
    found = counted(row)
    model, hardware = CONVENTIONS[row["formula_id"]](row, found)
    options, rate = row["formula_opts"], row["tokens_per_s_per_accel"]
    if rate is None and row["step_time_s"] is not None:
        tokens = options.get("tokens_per_seq", row["seq_len"])
        rate = row["global_batch"] * tokens / row["step_time_s"] / row["n_accel"]
    printed = {"flops_per_token": row["claimed_flops_per_token"], "attn_share": options.get("claimed_attn_share")}
    ours = {"flops_per_token": model / row["seq_len"], "attn_share": found.full / 2 / model}
    if rate is not None:
        printed |= {"tflops": row["claimed_tflops_per_accel"], "mfu": row["claimed_mfu"], "hfu": row["claimed_hfu"]}
        ours["tflops"] = model / row["seq_len"] * rate / 1e12
        peak = row["peak_tflops_used"]
        if peak:
            ours["mfu"] = ours["tflops"] / peak
            if hardware is not None:
                ours["hfu"] = hardware / row["seq_len"] * rate / 1e12 / peak
    allowed = row["self_check"]["rounding_tol"]
    return {
        name: (ours[name] / value - 1, allowed.get(name, 0) + BEYOND_ROUNDING)
        for name, value in printed.items()
        if value and name in ours
    }


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_published_runs(convention: str) -> None:
    """Every figure of every consistent row, within its source's rounding and 0.2 %."""
    rows = [row for row in ROWS.values() if row["formula_id"] == convention]
    found = {row["id"]: errors(row) for row in rows if row["self_check"]["status"] != "MISMATCH"}
    assert all(found.values()), "a row without a figure to compare"
    wrong = {
        name: figures
        for name, figures in found.items()
        if any(abs(error) > allowed for error, allowed in figures.values())
    }
    assert wrong == {}


def test_rows_that_contradict_themselves() -> None:
    """A right count cannot give figures that do not follow from their source's own numbers, and does not."""
    rows = [row for row in ROWS.values() if row["self_check"]["status"] == "MISMATCH"]
    assert rows
    for row in rows:
        assert any(abs(error) > allowed for error, allowed in errors(row).values()), row["id"]


def test_every_convention_is_known() -> None:
    """No row is passed over without a reason."""
    assert {row["formula_id"] for row in ROWS.values()} <= {*CONVENTIONS, *UNCHECKED}
