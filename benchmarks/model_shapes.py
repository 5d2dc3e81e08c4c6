"""Shapes of Llama-like models and their numbers of weights."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Shape of a Llama-like model.

    Fields:
        inner: width of the MLP.
        heads, key_heads: numbers of query heads and of key heads.
        size: width of a head.
        vocabulary: number of tokens.
        tied: whether the output layer and the embedding are the same matrix.
        bias: whether queries, keys and values have a bias.
    """

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    size: int
    vocabulary: int
    tied: bool = True
    bias: bool = False

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.size

    @property
    def keys(self) -> int:
        """Width of all key heads."""
        return self.key_heads * self.size

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the matrices of one layer."""
        h, q, k, m = self.hidden, self.queries, self.keys, self.inner
        return [(h, q), (h, k), (h, k), (q, h), (h, m), (h, m), (m, h)]

    @property
    def matrices(self) -> int:
        """Number of weights in the matrices of all layers."""
        return self.layers * sum(i * o for i, o in self.linears)

    @property
    def embedding(self) -> int:
        """Number of weights of the embedding."""
        return self.vocabulary * self.hidden

    @property
    def outside(self) -> int:
        """Number of weights outside the layers."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def weights(self) -> int:
        """Number of all weights."""
        bias = self.queries + 2 * self.keys if self.bias else 0
        return self.matrices + self.layers * (2 * self.hidden + bias) + self.outside

    @property
    def config(self) -> dict[str, Any]:
        """The shape as arguments of transformers' `LlamaConfig` and `Qwen2Config`."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.size,
            "tie_word_embeddings": self.tied,
        }

    def adapters(self, rank: int) -> int:
        """Number of weights of LoRA adapters on all matrices of the layers."""
        return self.layers * sum(rank * (i + o) for i, o in self.linears)


SHAPES = [
    Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152),
    Shape("SmolLM2-360M", 32, 960, 2560, 15, 5, 64, 49152),
    Shape("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151936, bias=True),
    Shape("Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 128, 151936, bias=True),
    Shape("Qwen2.5-3B", 36, 2048, 11008, 16, 2, 128, 151936, bias=True),
    Shape("Qwen2.5-7B", 28, 3584, 18944, 28, 4, 128, 152064, tied=False, bias=True),
    Shape("Qwen2.5-14B", 48, 5120, 13824, 40, 8, 128, 152064, tied=False, bias=True),
    Shape("Qwen2.5-32B", 64, 5120, 27648, 40, 8, 128, 152064, tied=False, bias=True),
    Shape("Qwen2.5-72B", 80, 8192, 29568, 64, 8, 128, 152064, tied=False, bias=True),
]
