"""Quantised, grouped and fused products of other libraries cost what the plain products that they replace do."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import mfu_sdk as mfu
from mfu_sdk.counting.formulas import FREE
from mfu_sdk.counting.functions import FunctionCost
from mfu_sdk.counting.third_party import FUNCTIONS, KERNELS, OPERATORS
from mfu_sdk.errors import FormulaError

M, N, K = 5, 6, 8

SCHEMAS = {
    "torchao::mx_fp8_bf16": "Tensor a, Tensor b, Tensor a_scale, Tensor b_scale",
    "torchao::mx_fp4_bf16": "Tensor a, Tensor b, Tensor a_scale, Tensor b_scale",
    "torchao::da8w4_linear_cpu": "Tensor input, Tensor input_scales, Tensor weight",
    "torchao::_linear_8bit_act_4bit_weight": "Tensor activations, Tensor packed, int group_size, int n, int k",
    "bitsandbytes::gemv_4bit": "Tensor A, Tensor B, int[] shapeB, Tensor absmax, Tensor code, int blocksize",
    "bitsandbytes::int8_mixed_scaled_mm": "Tensor A, Tensor CA, Tensor CB, Tensor SCA, Tensor SCB",
    "mslk::f8f8bf16_rowwise": "Tensor XQ, Tensor WQ, Tensor x_scale, Tensor w_scale",
    "fbgemm::f4f4bf16": "Tensor XQ, Tensor WQ, Tensor x_scale, Tensor w_scale",
    "mslk::bf16bf16bf16_grouped_stacked": "Tensor X, Tensor W, Tensor M_sizes",
    "mslk::f8f8bf16_rowwise_grouped_dynamic": "Tensor XQ, Tensor WQ, Tensor x_scale, Tensor w_scale, "
    "Tensor zero_start_index_M",
    "mslk::mx8mx8bf16_grouped_mm": "Tensor XQ, Tensor WQ, Tensor x_scale, Tensor w_scale, Tensor offsets",
    "mslk::bf16bf16bf16_grouped_wgrad": "Tensor X, Tensor W, Tensor M_sizes",
    "mslk::bf16bf16bf16_grouped": "Tensor[] X, Tensor[] W",
    "_C::machete_mm": "Tensor A, Tensor B, int b_type",
    "_C::awq_gemm": "Tensor _in_feats, Tensor _kernel, Tensor _scaling_factors, Tensor _zeros, SymInt split_k_iters",
    "_C::ggml_mul_mat_a8": "Tensor W, Tensor X, int type, SymInt row",
}
"""Operators whose result is (M, N), each with where its activations are among its arguments."""
WRITTEN = {
    "_C::cutlass_scaled_mm": "Tensor(a!) out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? bias",
    "_C::cutlass_moe_mm": "Tensor(a!) out_tensors, Tensor a_tensors, Tensor b_tensors, Tensor problem_sizes",
    "_C::rms_norm": "Tensor(a!) result, Tensor input, Tensor weight, float epsilon",
    "vllm::inplace_fused_experts": "Tensor(a!) hidden_states, Tensor w1, Tensor w2, Tensor topk_weights, "
    "Tensor topk_ids, str activation='silu', Tensor? expert_map=None",
}


@pytest.fixture(scope="module", autouse=True)
def libraries() -> Iterator[None]:
    """The operators: some give back M × N, others write one of their arguments."""
    kept = []
    for result, schemas in (("Tensor", SCHEMAS), ("()", WRITTEN)):
        for name, arguments in schemas.items():
            namespace, _, operator = name.partition("::")
            library = torch.library.Library(namespace, "FRAGMENT")
            library.define(f"{operator}({arguments}) -> {result}")
            made = (lambda *_, **__: torch.empty(M, N)) if result == "Tensor" else (lambda *_, **__: None)
            library.impl(operator, made, "CompositeExplicitAutograd")
            kept.append(library)
    yield
    for library in kept:
        library._destroy()


def flops(name: str, *args: object, **named: object) -> int:
    namespace, _, plain = name.partition("::")
    operator = getattr(getattr(torch.ops, namespace), plain)
    count = mfu.count(lambda: operator(*args, **named))
    assert count.uncounted == ()
    return count.model_flops


X, PACKED, ANY = torch.empty(M, K), torch.empty(M, K // 2, dtype=torch.uint8), torch.empty(1)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torchao::mx_fp8_bf16", (X, ANY, ANY, ANY)),
        ("torchao::mx_fp4_bf16", (PACKED, ANY, ANY, ANY)),
        ("torchao::da8w4_linear_cpu", (X, ANY, ANY)),
        ("torchao::_linear_8bit_act_4bit_weight", (X, ANY, 32, N, K)),
        ("bitsandbytes::gemv_4bit", (X, ANY, [N, K], ANY, ANY, 64)),
        ("bitsandbytes::int8_mixed_scaled_mm", (X, X.to(torch.int8), ANY, ANY, ANY)),
        ("mslk::f8f8bf16_rowwise", (X, ANY, ANY, ANY)),
        ("fbgemm::f4f4bf16", (PACKED, ANY, ANY, ANY)),
        ("_C::machete_mm", (X, ANY, 1)),
        ("_C::awq_gemm", (X, ANY, ANY, ANY, 1)),
        ("_C::ggml_mul_mat_a8", (ANY, X, 2, N)),
        ("_C::cutlass_scaled_mm", (torch.empty(M, N), X, ANY, ANY, ANY, None)),
    ],
)
def test_packed_weights(name: str, arguments: tuple[object, ...]) -> None:
    """However the weight is packed: rows and inner size of the activations, columns of the result."""
    assert flops(name, *arguments) == mfu.count(torch.mm, X, torch.empty(K, N)).model_flops == 2 * M * N * K


def test_experts_by_problem_sizes() -> None:
    """Three experts with 2, 0 and 3 rows: each row meets one expert."""
    sizes = torch.tensor([[2, N, K], [0, N, K], [3, N, K]], dtype=torch.int32)
    assert flops("_C::cutlass_moe_mm", torch.empty(M, N), X, ANY, sizes) == 2 * 5 * N * K


def test_experts_in_one_operand() -> None:
    """Rows by sizes, by how far each expert's place is filled, or by ends; what lies beyond them is padding."""
    weights, sizes = torch.empty(3, N, K), torch.tensor([2, 0, 1])
    expected = 2 * 3 * N * K
    assert flops("mslk::bf16bf16bf16_grouped_stacked", X, weights, sizes) == expected
    assert flops("mslk::f8f8bf16_rowwise_grouped_dynamic", torch.empty(3, M, K), weights, ANY, ANY, sizes) == expected
    assert flops("mslk::mx8mx8bf16_grouped_mm", X, weights, ANY, ANY, torch.tensor([2, 2, 3])) == expected
    assert flops("mslk::bf16bf16bf16_grouped_wgrad", torch.empty(M, N), X, sizes) == expected
    listed = [torch.empty(m, K) for m in (2, 0, 1)]
    assert flops("mslk::bf16bf16bf16_grouped", listed, list(weights)) == expected


def test_fused_experts() -> None:
    """Each routed row meets gate, up and down of one expert; experts of other ranks cost nothing here."""
    experts, inner, top_k = 4, 6, 2
    w1, w2 = torch.empty(experts, 2 * inner, K), torch.empty(experts, K, inner)
    routed = torch.tensor([[0, 1], [2, 3], [0, 3], [1, 2], [0, 0]])

    def reference() -> None:
        for row in range(M):
            for expert in routed[row].tolist():
                gate, up = (X[row] @ w1[expert].T).chunk(2)
                (F.silu(gate) * up) @ w2[expert].T

    name, weights = "vllm::inplace_fused_experts", torch.empty(M, top_k)
    whole = flops(name, X, w1, w2, weights, routed)
    assert whole == mfu.count(reference).model_flops
    mapped = torch.tensor([0, -1, 1, -1])
    assert flops(name, X, w1, w2, weights, routed, "silu", mapped) * 10 == whole * 6
    plain = flops(name, X, torch.empty(experts, inner, K), w2, weights, routed, "silu_no_mul")
    assert plain * 3 == whole * 2


def test_normalising_is_free() -> None:
    """An operator in the tables' free lists costs nothing and is not listed as uncounted."""
    assert flops("_C::rms_norm", X, X, X[0], 1e-6) == 0


def test_every_stand_in_has_a_price() -> None:
    """The names above are names in the table: a misspelled one would test nothing."""
    assert set(SCHEMAS) | set(WRITTEN) <= set(OPERATORS)


def test_experts_kernel() -> None:
    """The Triton kernel of experts says its rows, columns and inner size."""
    kernel = KERNELS["vllm.model_executor.layers.fused_moe.fused_moe:fused_moe_kernel"]
    assert kernel.formula({"num_valid_tokens": 10, "N": N, "K": K, "EM": 128}).dense == 2 * 10 * N * K


# --- linear layers ---------------------------------------------------------------------------------------------------

TE = "transformer_engine.pytorch."


def backward(cost: FunctionCost, needs: str) -> int:
    """The backward where "1" stands for an argument that wants a gradient, in the order of the arguments."""
    assert cost.backward is not None
    return cost.backward(tuple(need == "1" for need in needs)).dense


@pytest.mark.parametrize(
    ("layout", "a", "b"),
    [("TN", (N, K), (2, M, K)), ("NN", (N, K), (2, M, N)), ("NT", (2, M, K), (2, M, N))],
)
def test_general_gemm(layout: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Forward x·wᵀ, its input's gradient dy·w and its weight's dyᵀ·x are the same three sizes."""
    formula = FUNCTIONS[f"{TE}cpp_extensions.gemm:general_gemm"].formula
    cost = formula({"A": torch.empty(a), "B": torch.empty(b), "layout": layout})
    assert cost.forward.dense == 2 * (2 * M) * N * K
    # A quantised storage is no tensor: it has only size().
    stored = SimpleNamespace(size=lambda: torch.Size(a))
    assert formula({"A": stored, "B": torch.empty(b), "layout": layout}) == cost
    with pytest.raises(FormulaError, match="must agree"):
        formula({"A": torch.empty(a), "B": torch.empty(M + 1, N + 7), "layout": layout})


def test_general_grouped_gemm() -> None:
    """Each expert's product by its own rows."""
    formula = FUNCTIONS[f"{TE}cpp_extensions.gemm:general_grouped_gemm"].formula
    weights, rows = [torch.empty(N, K)] * 3, [torch.empty(m, K) for m in (2, 0, 4)]
    assert formula({"A": weights, "B": rows, "layout": "TN"}).forward.dense == 2 * 6 * N * K


def _settings(**more: object) -> dict[str, object]:
    return {"sequence_parallel": False, "parallel_mode": None, "tp_size": 1, "wgrad_store": None, **more}


def test_linear_modules() -> None:
    """Forward once, and once more for each gradient; settings by name or in one object."""
    arguments = {"weight": torch.empty(N, K), "inp": torch.empty(2, M, K), "bias": None}
    product = 2 * (2 * M) * N * K
    formula = FUNCTIONS[f"{TE}module.linear:_Linear.forward"].formula
    cost = formula(arguments | {"fwd_args": SimpleNamespace(**_settings())})
    assert cost.forward.dense == product
    assert backward(cost, "1100") == 2 * product
    assert backward(cost, "0100") == product
    gathered = formula(arguments | _settings(sequence_parallel=True, parallel_mode="column", tp_size=4))
    assert gathered.forward.dense == 4 * product
    scattered = formula(arguments | _settings(sequence_parallel=True, parallel_mode="row", tp_size=4))
    assert scattered.forward.dense == product
    with pytest.raises(FormulaError, match="parallel_mode"):
        formula(arguments)
    delayed = SimpleNamespace(delay_wgrad_compute=lambda: True)
    with pytest.raises(FormulaError, match="outside of the backward"):
        formula(arguments | _settings(wgrad_store=delayed))


def test_normed_linear_modules() -> None:
    """The norm's own parameters want the input's gradient too."""
    arguments: dict[str, Any] = {"inp": torch.empty(M, K), "ln_weight": torch.empty(K), "ln_bias": None}
    arguments |= {"weight": torch.empty(N, K), **_settings()}
    cost = FUNCTIONS[f"{TE}module.layernorm_linear:_LayerNormLinear.forward"].formula(arguments)
    product = 2 * M * N * K
    assert cost.forward.dense == product
    assert backward(cost, "0100") == product
    assert backward(cost, "0001") == product
    assert backward(cost, "1111") == 2 * product
    mlp = {name: arguments[name] for name in ("inp", "ln_weight", "ln_bias")}
    mlp |= {"fc1_weight": torch.empty(12, K), "fc1_bias": None, "fc2_weight": torch.empty(K, 6), "fc2_bias": None}
    mlp |= _settings(set_parallel_mode=True)
    whole = FUNCTIONS[f"{TE}module.layernorm_mlp:_LayerNormMLP.forward"].formula(mlp)
    first, second = 2 * M * 12 * K, 2 * M * 6 * K
    assert whole.forward.dense == first + second
    assert backward(whole, "110101") == 2 * (first + second)
    # Only the second matrix learns: nothing before it needs a gradient.
    assert backward(whole, "000001") == second
    assert backward(whole, "000100") == first + second


def test_grouped_linear_modules() -> None:
    """One weight an expert, after the named arguments; padding of the splits is theirs."""
    weights = tuple(torch.empty(N, K) for _ in range(3))
    arguments = {"inp": torch.empty(6, K), "m_splits": [2, 0, 4], "non_tensor_args": (), "out": None}
    cost = FUNCTIONS[f"{TE}module.grouped_linear:_GroupedLinear.forward"].formula(
        arguments | {"weights_and_biases": (*weights, ANY, ANY, ANY)}
    )
    product = 2 * 6 * N * K
    assert cost.forward.dense == product
    assert backward(cost, "1000111000") == 2 * product
    assert backward(cost, "0000010000") == product
    assert backward(cost, "0000000111") == 0


def test_linear_layers_of_megatron() -> None:
    """Sequence parallelism gathers the rows; a weight's gradient that is deferred is refused."""
    arguments = {"input": torch.empty(3, 2, K), "weight": torch.empty(N, K), "bias": None, "sequence_parallel": False}
    name = "megatron.core.tensor_parallel.layers:LinearWithGradAccumulationAndAsyncCommunication.forward"
    product = 2 * 6 * N * K
    cost = FUNCTIONS[name].formula(arguments)
    assert (cost.forward.dense, backward(cost, "1100"), backward(cost, "0100")) == (product, 2 * product, product)
    group = SimpleNamespace(size=lambda: 4)
    gathered = FUNCTIONS[name].formula(arguments | {"sequence_parallel": True, "tp_group": group})
    assert gathered.forward.dense == 4 * product
    for refused in ({"sequence_parallel": True}, {"grad_output_buffer": []}):
        with pytest.raises(FormulaError, match="register a formula"):
            FUNCTIONS[name].formula(arguments | refused)


def test_normed_linear_functions() -> None:
    """An activation that ends in a linear layer: its two inputs share a gradient's product."""
    arguments = {"x": torch.empty(M, K), "y": torch.empty(M, K), "weight": torch.empty(N, K), "bias": None}
    cost = FUNCTIONS["fla.modules.activations:SwiGLULinearFunction.forward"].formula(arguments)
    assert cost.forward.dense == 2 * M * N * K
    assert backward(cost, "1110") == 2 * cost.forward.dense
    assert backward(cost, "0100") == cost.forward.dense


def test_grouped_gemm() -> None:
    """Either orientation of the weights, and the weights' gradient, are the same three sizes an expert."""
    formula = FUNCTIONS["grouped_gemm.backend:gmm"].formula
    batches = torch.tensor([2, 0, 4])
    expected = 2 * 6 * N * K
    x, dy = torch.empty(6, K), torch.empty(6, N)
    plain = {"batch_sizes": batches, "trans_a": False, "trans_b": False}
    assert formula(plain | {"a": x, "b": torch.empty(3, K, N)}).forward.dense == expected
    assert formula(plain | {"a": x, "b": torch.empty(3, N, K), "trans_b": True}).forward.dense == expected
    assert formula(plain | {"a": x, "b": dy, "trans_a": True}).forward.dense == expected


# --- fused losses ----------------------------------------------------------------------------------------------------


def _loss(x: torch.Tensor, weight: torch.Tensor) -> None:
    F.cross_entropy(x @ weight.T, torch.zeros(len(x), dtype=torch.long)).backward()


@pytest.mark.parametrize(("x_learns", "w_learns"), [(True, True), (True, False), (False, True)])
def test_fused_linear_loss_is_the_plain_one(x_learns: bool, w_learns: bool) -> None:
    """Forward one product, one for each gradient that is wanted; Liger leaves the weight's out where x wants none."""
    x, weight = torch.randn(M, K, requires_grad=x_learns), torch.randn(N, K, requires_grad=w_learns)
    plain = mfu.count(_loss, x, weight)
    liger = FUNCTIONS["liger_kernel.ops.fused_linear_cross_entropy:LigerFusedLinearCrossEntropyFunction.forward"]
    fla = FUNCTIONS["fla.modules.fused_linear_cross_entropy:FusedLinearCrossEntropyFunction.forward"]
    ours = fla.formula({"x": x, "weight": weight}).forward
    assert (ours.dense - ours.early, ours.early) == (plain.forward_flops, plain.backward_flops)
    assert ours.hardware == 3 * plain.forward_flops
    theirs = liger.formula({"_input": x, "weight": weight}).forward
    made = plain.backward_flops if x_learns else 0
    assert (theirs.dense, theirs.early, theirs.hardware) == (plain.forward_flops + made, made, theirs.dense)
    assert liger.formula({"_input": x, "weight": weight}).backward is not None
    with pytest.raises(FormulaError, match="reduction"):
        liger.formula({"_input": x, "weight": weight, "reduction": "none"})


def test_distillation_has_a_teacher() -> None:
    """The teacher's logits are one product of its own size, and take no gradient."""
    arguments = {"student_input": torch.randn(M, K, requires_grad=True), "teacher_input": torch.randn(M, 2 * K)}
    arguments |= {"student_weight": torch.randn(N, K, requires_grad=True), "teacher_weight": torch.randn(N, 2 * K)}
    cost = FUNCTIONS["liger_kernel.ops.fused_linear_jsd:LigerFusedLinearJSDFunction.forward"].formula(arguments)
    product = 2 * M * N * K
    assert (cost.forward.dense, cost.forward.early) == (product + 2 * product + 2 * product, 2 * product)


def test_mixture_of_experts_of_liger() -> None:
    """Rows that were routed, times one expert's matrices; gradients as in three plain linear layers."""
    inner, rows = 6, M * 2
    arguments = {"x": torch.empty(M, K), "gate_up_proj": torch.empty(4, 2 * inner, K)}
    arguments |= {"down_proj": torch.empty(4, K, inner), "top_k_index": torch.zeros(M, 2, dtype=torch.int32)}
    cost = FUNCTIONS["liger_kernel.ops.fused_moe:LigerFusedMoEFunction.forward"].formula(
        arguments | {"top_k_weights": torch.empty(M, 2)}
    )
    up, down = 2 * rows * 2 * inner * K, 2 * rows * inner * K
    assert cost.forward.dense == up + down
    assert backward(cost, "11101") == 2 * (up + down)
    assert backward(cost, "00100") == down
    # The router's gradient is a dot product with what was kept, and needs no matrix.
    assert backward(cost, "00001") == 0


def test_elementwise_functions_are_free_both_ways() -> None:
    """Declared, so that the Triton kernels that they launch are not listed as uncounted."""
    cost = FUNCTIONS["liger_kernel.ops.rms_norm:LigerRMSNormFunction.forward"].formula({})
    assert cost.forward == FREE
    assert cost.backward is not None
    assert cost.backward((True,)) == FREE


def test_names_and_words() -> None:
    """Every price says its formula in words and where it comes from, under a name of the right form."""
    for name, price in OPERATORS.items():
        assert all(name.partition("::")), name
        # An operator that works in place is looked up without its underscore.
        assert not name.endswith("_"), name
        assert price.words, name
        assert price.source, name
    for table in (FUNCTIONS, KERNELS):
        for name, known in table.items():
            assert all(name.partition(":")), name
            assert "::" not in name
            assert known.words, name
            assert known.source, name
