import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import mfu_sdk as mfu
from mfu_sdk.cli import main
from mfu_sdk.counting.differences import Row, beside_fvcore, beside_torch
from mfu_sdk.counting.verify import describe, verify
from mfu_sdk.counting.witnesses import Observed, Witnesses

aten = torch.ops.aten


def watched(work: Callable[[], object]) -> Observed:
    witnesses = Witnesses()
    witnesses.start()
    try:
        work()
    finally:
        witnesses.stop()
    return witnesses.observed()


def torchs(work: Callable[[], object]) -> dict[str, tuple[int | None, int, dict[str, int], int]]:
    """By operator: ours, torch's, why, and what is not explained."""
    observed = watched(work)
    assert observed.torch is not None
    return told(beside_torch(observed, observed.torch))


def fvcores(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, tuple[int | None, int, dict[str, int], int]]:
    witnesses = Witnesses()
    witnesses.called(model, args, kwargs)
    saw = witnesses.observed().fvcore
    assert saw is not None
    return told(beside_fvcore(saw))


def told(rows: tuple[Row, ...]) -> dict[str, tuple[int | None, int, dict[str, int], int]]:
    return {row.op: (row.ours, row.theirs, {r.rule: r.flops for r in row.reasons}, row.unexplained) for row in rows}


# --- beside torch: a rule at a time, on the smallest work that shows it ----------------------------------------------


def test_equal_counts_need_no_reason() -> None:
    """(2, 3) × (3, 5) is 2·2·3·5 = 60 FLOPs to both."""
    assert torchs(lambda: torch.randn(2, 3) @ torch.randn(3, 5)) == {"aten::mm": (60, 60, {}, 0)}


def test_no_formula() -> None:
    """torch has none for a matrix by a vector: 2·4·3 = 24 FLOPs are missing, and that is the reason."""
    assert torchs(lambda: torch.randn(4, 3) @ torch.randn(3)) == {"aten::mv": (24, 0, {"no_formula": -24}, 0)}


def test_no_formula_for_the_in_place_form() -> None:
    """addmm_ is addmm: 2·2·3·5 = 60, of which torch has none; the addmm beside it is 60 to both."""

    def work() -> None:
        out = torch.zeros(2, 5)
        out.addmm_(torch.randn(2, 3), torch.randn(3, 5))
        torch.addmm(out, torch.randn(2, 3), torch.randn(3, 5))

    assert torchs(work) == {"aten::addmm": (120, 60, {"in_place": -60}, 0)}


def test_masked_pairs() -> None:
    """Causal attention of length 4, width 8, by plain products: 10 of 16 pairs are let through."""

    def work() -> None:
        q = torch.randn(1, 4, 8)
        scores = torch.bmm(q, q.transpose(1, 2))
        hidden = torch.ones(4, 4, dtype=torch.bool).triu(1)
        torch.bmm(scores.masked_fill(hidden, float("-inf")).softmax(-1), q)

    # Two products of 2·8 FLOPs a pair.
    assert torchs(work) == {"aten::bmm": (2 * 16 * 10, 2 * 16 * 16, {"masked": 2 * 16 * 6}, 0)}


@pytest.mark.parametrize(("reentrant", "again"), [(True, 120 + 80), (False, 120)])
def test_recomputation(reentrant: bool, again: int) -> None:
    """(4, 3) → 5 → 2 is 120 + 80; made again whole, or only up to what the backward needs: the second layer's input."""
    layer = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False))

    def work() -> None:
        x = torch.randn(4, 3, requires_grad=True)
        checkpoint(layer, x, use_reentrant=reentrant).sum().backward()

    assert torchs(work) == {"aten::mm": (600, 600 + again, {"recompute": again}, 0)}


def test_the_optimizers_products() -> None:
    """Muon's iterations are no model work: ours has the layer's 2·4·3·5 forward and as much for its weight."""
    layer = nn.Linear(3, 5, bias=False)
    optimizer = torch.optim.Muon(layer.parameters())

    def work() -> None:
        layer(torch.randn(4, 3)).sum().backward()
        optimizer.step()

    found = torchs(work)
    assert sum(row[0] or 0 for row in found.values()) == 240
    assert all(row[3] == 0 for row in found.values())
    # Five iterations, each of (3, 5)·(5, 3), (3, 3)·(3, 3) and (3, 3)·(3, 5): 2·(45 + 27 + 45) = 234.
    assert sum(row[2].get("optimizer", 0) for row in found.values()) == 5 * 234


@pytest.mark.parametrize("transposed", [False, True])
def test_groups(transposed: bool) -> None:
    """Depthwise, 4 channels, 3 taps, 6 pixels: 2·6·4·3 = 144 a product; torch says 4·144 for the weight's gradient."""
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    layer = kind(4, 4, 3, groups=4, padding=1, bias=False)

    def work() -> None:
        layer(torch.randn(1, 4, 6, requires_grad=True)).sum().backward()

    assert torchs(work) == {
        "aten::convolution_backward": (288, 720, {"groups": 432}, 0),
        "aten::convolution": (144, 144, {}, 0),
    }


def test_complex_products() -> None:
    """A complex multiply-add is 8 FLOPs, where torch has 2: 8·2·3·5 = 240."""

    def work() -> Tensor:
        return torch.randn(2, 3, dtype=torch.complex64) @ torch.randn(3, 5, dtype=torch.complex64)

    assert torchs(work) == {"aten::mm": (240, 60, {"complex": -180}, 0)}


@pytest.mark.parametrize("heads", [2, 1])
def test_scores_made_again_in_a_fused_backward(heads: int) -> None:
    """torch counts five products, the model needs four: the fifth is 2·B·H·S²·D."""
    q = torch.randn(1, 2, 4, 8, device="meta", dtype=torch.bfloat16)
    k = torch.randn(1, heads, 4, 8, device="meta", dtype=torch.bfloat16)
    lse = torch.randn(1, 2, 4, device="meta")
    none = torch.empty(0, device="meta", dtype=torch.int64)

    given = (q, q, k, k, q, lse, None, None, 4, 4)

    def work() -> None:
        aten._scaled_dot_product_flash_attention_backward(*given, 0.0, False, none, none)  # noqa: FBT003

    product = 2 * 1 * 2 * 4 * 4 * 8
    assert torchs(work) == {
        "aten::_scaled_dot_product_flash_attention_backward": (4 * product, 5 * product, {"fifth": product}, 0)
    }


def test_lengths_and_heads_exchanged() -> None:
    """(B, S, H, D) = (1, 16, 2, 8) read as (B, H, S, D): 16 heads of length 2, an eighth of what is right."""
    q = torch.randn(1, 16, 2, 8, device="meta", dtype=torch.bfloat16)

    def work() -> None:
        aten._flash_attention_forward(q, q, q, None, None, 16, 16, 0.0, False, False)  # noqa: FBT003

    right, said = 4 * 2 * 16 * 16 * 8, 4 * 16 * 2 * 2 * 8
    assert torchs(work) == {"aten::_flash_attention_forward": (right, said, {"layout": said - right}, 0)}


def test_beneath_a_priced_function() -> None:
    """What runs beneath a function with a price of its own is in that price, not in the operator's row."""

    def fused(x: Tensor, w: Tensor) -> Tensor:
        return x @ w

    mfu.register_flops(fused, lambda x, w, out: 7)

    def work() -> None:
        fused(torch.randn(2, 3), torch.randn(3, 5))
        torch.randn(2, 3) @ torch.randn(3, 5)

    found = torchs(work)
    assert found.pop("aten::mm") == (60, 120, {"covered": 60}, 0)
    [(ours, theirs, why, left)] = found.values()
    assert (ours, theirs, why, left) == (7, 0, {"no_formula": -7}, 0)


def test_the_users_formula() -> None:
    """Whoever has two formulas for one operator sees both numbers: 7 here, 10 there."""

    @torch.library.custom_op("verified::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x + x

    register_flop_formula(torch.ops.verified.twice)(lambda x, out_shape: 10)
    mfu.register_flops(twice, lambda x, out: 7)
    assert torchs(lambda: twice(torch.randn(3))) == {"verified::twice": (7, 10, {"users": 3}, 0)}


def test_global_shapes_of_sharded_tensors() -> None:
    """One of four ranks multiplies (8, 4) by its (4, 2) of (4, 8): 128 FLOPs; torch says the whole 512."""
    torch.distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (4,))
        from torch.distributed.tensor import DTensor, Replicate, Shard

        x = DTensor.from_local(torch.randn(8, 4), mesh, [Replicate()])
        w = DTensor.from_local(torch.randn(4, 2), mesh, [Shard(1)])
        found = torchs(lambda: x @ w)
    finally:
        torch.distributed.destroy_process_group()
    assert found == {"aten::mm": (128, 512, {"sharded": 384}, 0)}


def test_what_no_rule_explains_is_left_over() -> None:
    """A formula of torch's that is wrong in a way unknown here shows as such, and is not given a reason."""
    from torch.utils import flop_counter

    right = flop_counter.flop_registry[aten.mm]
    flop_counter.flop_registry[aten.mm] = lambda *args, **kwargs: right(*args, **kwargs) + 5  # type: ignore[assignment]
    try:
        found = torchs(lambda: torch.randn(2, 3) @ torch.randn(3, 5))
    finally:
        flop_counter.flop_registry[aten.mm] = right
    assert found == {"aten::mm": (60, 65, {}, 5)}


def test_the_witnesses_do_not_change_each_other() -> None:
    """Run at once, each counts what it counts alone: a model with attention, a convolution and normalisation."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(self.conv(x.transpose(1, 2)).transpose(1, 2))
            return out

    model, x = Model(), torch.randn(2, 4, 8)

    def work() -> None:
        model(x).sum().backward()

    together = watched(work)
    alone = mfu.count(work)
    with FlopCounterMode(display=False) as counter:
        work()
    assert together.count.by_op == alone.by_op
    assert together.count.hardware_flops == alone.hardware_flops
    assert together.torch is not None
    assert sum(together.torch.totals.values()) == counter.get_total_flops() > 0


# --- beside fvcore ----------------------------------------------------------------------------------------------------


class Attends(nn.Module):
    """A linear layer and attention over what it gives, in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24, bias=False)

    def forward(self, x: Tensor, *, causal: bool = True) -> dict[str, Tensor]:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return {"y": F.scaled_dot_product_attention(q, k, v, is_causal=causal)}


def test_fvcore_lacks_attention_and_counts_norms() -> None:
    """(1, 1, 4, 8): linear 2·4·8·24 to both; attention 4·8·10 pairs to us alone; normalisation 5·32 to fvcore alone."""
    found = fvcores(Attends(), torch.randn(1, 1, 4, 8))
    assert found["matrix products"] == (1536, 1536, {}, 0)
    assert found["layer_norm"] == (0, 160, {"elementwise": 160}, 0)
    assert found["aten::_scaled_dot_product_flash_attention_for_cpu"] == (320, 0, {"unsupported": -320}, 0)


def test_fvcore_gets_the_keywords_of_the_call() -> None:
    """Without the causal mask all 16 pairs count: the call is traced as it was made."""
    found = fvcores(Attends(), x=torch.randn(1, 1, 4, 8), causal=False)
    assert found["aten::_scaled_dot_product_flash_attention_for_cpu"] == (512, 0, {"unsupported": -512}, 0)


def test_fvcore_attention_made_of_plain_products() -> None:
    """With dropout on a CPU, attention runs as two products beside a linear layer; the trace has it as one operator."""

    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = F.linear(x, self.weight)
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    found = fvcores(Drops(), torch.randn(1, 1, 4, 8))
    assert found["matrix products"] == (512 + 512, 512, {"unsupported": -512}, 0)


def test_fvcore_lacks_recurrent_layers() -> None:
    """An LSTM 3 → 5, 2 steps of 1: 8·5·(3 + 5) a step."""
    found = fvcores(nn.LSTM(3, 5, batch_first=True), torch.randn(1, 2, 3))
    assert {row[2].get("unsupported") for row in found.values()} == {-640}
    assert sum(row[0] or 0 for row in found.values()) == 640
    assert all(row[3] == 0 for row in found.values())


def test_fvcore_takes_a_multiply_add_for_one() -> None:
    """A convolution of 3 channels into 4, 2 taps, 5 pixels: 2·5·4·3·2 = 240 with its multiply-adds taken twice."""
    assert fvcores(nn.Conv1d(3, 4, 2), torch.randn(1, 3, 6)) == {"convolutions": (240, 240, {}, 0)}


def test_fvcore_leaves_out_a_batch_of_the_right_operand() -> None:
    """(2, 4) by three of (4, 5) is 3·2·2·4·5 = 240; fvcore has the batch of the left operand, which has none."""

    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight @ x

    assert fvcores(Mixes(), torch.randn(3, 4, 5)) == {"matrix products": (240, 80, {"broadcast": -160}, 0)}


def test_fvcore_scores_of_an_operator_that_it_lacks() -> None:
    """Causal scores by baddbmm, 10 of 16 pairs of width 8: fvcore has none of them, and counts the values' product."""

    class Scores(nn.Module):
        def forward(self, q: Tensor, hidden: Tensor) -> Tensor:
            scores = torch.baddbmm(torch.zeros(1, 1, 1), q, q.transpose(1, 2))
            return torch.bmm(scores.masked_fill(hidden, float("-inf")).softmax(-1), q)

    hidden = torch.ones(4, 4, dtype=torch.bool).triu(1)
    # 160 FLOPs of the pairs are missing with the scores, 96 of the masked ones are too many with the values.
    found = fvcores(Scores(), torch.randn(1, 4, 8), hidden)
    assert found == {"matrix products": (320, 256, {"unsupported": -160, "masked": 96}, 0)}


@pytest.mark.parametrize("compiled", [False, True])
def test_fvcore_under_autocast_and_compiled(compiled: bool) -> None:
    """The traced call has the autocast of the first, casts of weights included; compiled code is traced as written."""
    model = nn.Sequential(nn.Linear(4, 8))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 4))
        found = fvcores(torch.compile(model, backend="eager") if compiled else model, torch.randn(2, 4))
    assert found == {"matrix products": (128, 128, {}, 0)}


def test_fvcore_leaves_the_model_as_it_was() -> None:
    """The traced forwards run in training mode: neither running statistics nor the random state may show it."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(4, 3)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    fvcores(model, x)
    assert torch.equal(torch.rand(1), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_fvcore_that_fails_is_a_note() -> None:
    """fvcore cannot read a matrix by a vector; that is said, and the rest stands."""

    class Vector(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x[0]

    witnesses = Witnesses()
    witnesses.called(Vector(), (torch.randn(2, 3),), {})
    observed = witnesses.observed()
    assert observed.fvcore is None
    assert "fvcore: could not analyse Vector" in observed.notes[0]


def test_without_fvcore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed: a note says how to install it."""
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    witnesses = Witnesses()
    witnesses.called(nn.Linear(2, 2), (torch.randn(1, 2),), {})
    assert witnesses.observed().notes == ("fvcore: fvcore.nn is not installed; pip install mfu-sdk[verify]",)


# --- the command, on real programs ------------------------------------------------------------------------------------

SCRIPT = """
import sys
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(3, 5, bias=False)
        self.down = nn.Linear(5, 2, bias=False)

    def forward(self, x, *, scale):
        return self.down(self.up(x * scale))

print("argument", sys.argv[1], __name__)
model = Model()
with torch.no_grad():
    model(torch.randn(100, 3), scale=1.0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
try:
    for step in range(1000):
        for _ in range(2):
            model(torch.randn(4, 3), scale=2.0).sum().backward()
        optimizer.step()
        print("never", step)
finally:
    print("cleaned up")
"""

MODULE = """
import torch
from torch import nn

def pair():
    return nn.Linear(3, 5, bias=False), torch.randn(4, 3)

def keywords():
    return nn.Linear(3, 5, bias=False), (), {"input": torch.randn(4, 3)}

def work():
    return lambda: torch.randn(2, 3) @ torch.randn(3, 5)

def unknown():
    @torch.library.custom_op("verified::secret", mutates_args=())
    def secret(x: torch.Tensor) -> torch.Tensor:
        return x.clone()
    return lambda: (secret(torch.randn(3)), torch.randn(2, 3) @ torch.randn(3, 5))

def nothing():
    return 5

def branches():
    a = torch.randn(4, 4)
    def work():
        return torch.cond(torch.tensor(True), lambda x: x @ a, lambda x: x @ a @ a, (torch.randn(2, 4),))
    return work

def breaks_torchs_counter():
    from torch.utils import flop_counter
    def broken(*args, **kwargs):
        raise ValueError("not for this one")
    flop_counter.flop_registry[torch.ops.aten.mm] = broken
    return lambda: torch.randn(2, 3) @ torch.randn(3, 5)
"""


def ran(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["verify", *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MFU_GUARD")
    return tmp_path


def test_a_script(folder: Path) -> None:
    """Its first step, of two micro-batches, in a process of its own; what ran without gradients is not in it."""
    run = subprocess.run(
        [sys.executable, "-m", "mfu_sdk.cli", "verify", "--json", "train.py", "--x"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    # (4, 3) → 5 is 120, without an input gradient; (4, 5) → 2 is 80, with one.
    assert found["model_flops"] == 2 * (2 * 120 + 3 * 80)
    assert found["work"].startswith("the first training step of Model (SGD)")
    torchs, fvcores = found["comparisons"]
    assert (torchs["ours"], torchs["theirs"]) == (960, 960)
    assert (fvcores["ours"], fvcores["theirs"]) == (200, 200)
    assert "argument --x __main__" in run.stderr
    assert "cleaned up" in run.stderr
    assert "never" not in run.stderr


def test_a_scripts_first_forward(folder: Path) -> None:
    """With --forward, the first forward of any kind is all: (100, 3) → 5 → 2."""
    result = ran("--forward", "--json", "train.py", "argument")
    assert json.loads(result.stdout)["model_flops"] == 100 * 2 * (15 + 10)


def test_callables(folder: Path) -> None:
    """A pair trains once; a function is called; keywords reach the model."""
    found = verify("models.py:pair")
    assert (found.model_flops, found.good) == (240, True)
    assert [each.theirs for each in found.comparisons] == [240, 120]
    assert verify("models:keywords", forward_only=True).model_flops == 120


def test_work_without_a_module(folder: Path) -> None:
    """fvcore has nothing to say where no module ran, and that is a note."""
    found = verify("models:work")
    assert found.model_flops == 60
    assert found.notes == ("fvcore: no module ran, and fvcore counts modules only",)
    text = describe(found, 80, color=False)
    assert "60 model FLOPs, 60 executed, coverage 100.0%" in text
    assert "ok    every difference is explained" in text
    assert "\x1b" not in text


def test_an_operator_without_a_price(folder: Path) -> None:
    """Exit 1, and the operator is named with the remedy."""
    result = ran("models.py:unknown")
    assert result.exit_code == 1
    assert "BAD   verified::secret: not counted, 1 × in no module; price it with mfu.register_flops" in result.stdout


def test_a_program_that_breaks_torchs_counter(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """torch's witness is left out and named; ours stands."""
    found = verify("models.py:breaks_torchs_counter")
    assert found.model_flops == 60
    assert found.notes[0] == "torch FlopCounterMode: failed on this program (ValueError: not for this one)"
    assert found.comparisons == ()
    assert "again without it" in capfd.readouterr().err


def test_branches_run_once(folder: Path) -> None:
    """torch's counter runs both branches of torch.cond, so it stays away: (2, 4) by the chosen (4, 4) is 64."""
    found = verify("models.py:branches")
    assert found.model_flops == 64
    assert "it would run both branches of torch.cond" in found.notes[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "nowhere.py: no such file"),
        (["nowhere.py:x"], "nowhere.py: no such file"),
        (["no.such.module:x"], "no.such.module: no module of this name"),
        (["models.py:nix"], "has no attribute 'nix'"),
        (["models.py:nothing"], "returned int; must return (model, args)"),
        (["models.py:pair", "--x"], "'--x': models.py:pair is called without arguments"),
        (["models.py"], "ended without a forward with gradients on"),
    ],
)
def test_wrong_usage(folder: Path, arguments: list[str], message: str) -> None:
    """One line: the value, the rule, the remedy; exit 2."""
    result = ran(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_script_that_fails(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its own traceback, without our frames, and one line from us; exit 2."""
    (folder / "bad.py").write_text("def f():\n    raise KeyError('x')\nf()\n")
    result = ran("bad.py")
    assert result.exit_code == 2
    assert "bad.py: failed before its first step was over (KeyError: 'x'); make it run by itself" in result.stderr
    trace = capfd.readouterr().err
    assert "raise KeyError('x')" in trace
    assert "mfu_sdk" not in trace
