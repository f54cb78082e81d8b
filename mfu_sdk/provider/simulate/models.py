"""The models that simulated tenants train and serve: shapes, FLOPs, bytes.

Transformers by their published configurations (Llama 2 and 3, GPT-2, OPT); the figures for others are those of their
papers. FLOPs count a multiply-add as two and attention over the pairs that a causal mask lets through.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Transformer:
    """A decoder: `layers` of width `hidden`, `kv_hidden` wide keys and values, a gated or plain MLP `ffn` wide."""

    name: str
    layers: int
    hidden: int
    kv_hidden: int
    heads: int
    ffn: int
    vocabulary: int
    gated: bool = True

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """(n, k) of each matrix of one layer."""
        up = 2 * self.ffn if self.gated else self.ffn
        return (
            (self.hidden + 2 * self.kv_hidden, self.hidden), (self.hidden, self.hidden), (up, self.hidden),
            (self.hidden, self.ffn),
        )  # fmt: skip

    @property
    def layer_parameters(self) -> float:
        """Weights of one layer's matrices."""
        return float(sum(n * k for n, k in self.products))

    @property
    def parameters(self) -> float:
        """Weights that take part in products: layers and lm_head."""
        return self.layers * self.layer_parameters + self.vocabulary * self.hidden

    def forward_flops(self, context: float) -> float:
        """Model FLOPs of a token that attends to `context` others."""
        return 2 * self.parameters + 4 * self.layers * self.hidden * context

    def training_flops(self, seq: int) -> float:
        """Model FLOPs of a token, forward and backward, with a causal mask over `seq` tokens."""
        return 3 * self.forward_flops((seq + 1) / 2)

    @property
    def kv_bytes(self) -> float:
        """Keys and values of one token in 16 bits."""
        return 2.0 * self.layers * self.kv_hidden * 2


@dataclass(frozen=True, slots=True)
class Vision:
    """An encoder of images: a sample's model FLOPs forward and bytes moved, the weights, the products' width."""

    name: str
    sample_flops: float
    sample_bytes: float
    parameters: float
    width: int


GPT_125M = Transformer("gpt2", 12, 768, 768, 12, 3072, 50257, gated=False)
OPT_1B = Transformer("opt", 24, 2048, 2048, 32, 8192, 50272, gated=False)
LLAMA_3B = Transformer("llama", 28, 3072, 1024, 24, 8192, 128256)
LLAMA_7B = Transformer("llama", 32, 4096, 4096, 32, 11008, 32000)
LLAMA_8B = Transformer("llama", 32, 4096, 1024, 32, 14336, 128256)
LLAMA_13B = Transformer("llama", 40, 5120, 5120, 40, 13824, 32000)
LLAMA_70B = Transformer("llama", 80, 8192, 1024, 64, 28672, 128256)
# MACs of the papers' tables × 2; bytes are activations written and read in 16 bits, once each.
VIT_L = Vision("vit", 123e9, 0.35e9, 304e6, 1024)
RESNET_50 = Vision("resnet", 8.2e9, 0.09e9, 25.6e6, 512)
MOBILENET = Vision("mobilenet", 0.6e9, 0.06e9, 5.4e6, 160)
