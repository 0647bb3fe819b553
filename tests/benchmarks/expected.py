"""What a sketch costs by its model's shape alone; no script, ``scaling.py`` compares with it.

The operations are those of ``counting.py`` (a multiply-add is two), which needs the model itself;
here its configuration is enough, and so a model that no machine at hand can hold.
"""

from dataclasses import dataclass

LINES = 8 + 32
"""k + r: leading and random directions of a layer's inputs, as in ``cost.py``."""
PEAK = 989e12
"""Operations a second of an H100 SXM: dense products in bfloat16, by its data sheet."""
SHARES = (0.4, 0.2)
"""Of that rate; assumed, not measured."""
ROW_BYTES = {"4k": 4096 + 128 + 40, "8k": 8192 + 128 + 40, "16k": 16384 + 128 + 40}
"""By ``--row-size``: numbers, 64 scales of two bytes, and the columns beside them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama: rotary attention with shared keys, a gated MLP, no biases."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_size: int = 64
    tied: bool = True

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one block."""
        wide, narrow = self.heads * self.head_size, self.kv_heads * self.head_size
        gated = [(self.hidden, self.intermediate)] * 2 + [(self.intermediate, self.hidden)]
        return [(self.hidden, wide), *[(self.hidden, narrow)] * 2, (wide, self.hidden), *gated]

    @property
    def blocks(self) -> int:
        """Weights of all blocks' linear layers: what is sketched by default."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def parameters(self) -> int:
        """All weights, those of norms left out."""
        return self.blocks + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def channels(self) -> int:
        """Of attention, in all layers together."""
        return self.layers * self.heads * self.head_size

    def config(self) -> dict[str, int | bool]:
        """The arguments of transformers' ``LlamaConfig``."""
        return {
            "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_size,
            "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied,
            "max_position_embeddings": 1 << 17,
        }  # fmt: skip


def operations(shape: Shape, tokens: int, answers: int, lines: int = LINES) -> dict[str, int]:
    """Of one pair: a row of ``tokens``, of which the two answers have ``answers``."""
    sides = shape.layers * sum(inputs + outputs for inputs, outputs in shape.linears)
    outputs = shape.layers * sum(outputs for _, outputs in shape.linears)
    return {
        "blocks": 4 * shape.blocks * tokens,
        "attention": 14 * shape.channels * tokens**2,
        "head": 4 * shape.vocabulary * shape.hidden * answers,
        "sketch": 2 * lines * (sides * tokens + outputs),
    }


def activation_bytes(shape: Shape, half: bool) -> int:
    """Bytes a token that a batch keeps for the backward pass.

    Frozen linears keep nothing. Both norms keep their input in float32; attention keeps queries,
    keys, values (repeated for their heads) and its result; the MLP its two halves and the gate's
    activation.
    """
    size = 2 if half else 4
    wide = shape.heads * shape.head_size
    return shape.layers * (2 * 4 * shape.hidden + 4 * size * wide + 3 * size * shape.intermediate)


def projection_bytes(shape: Shape, half: bool, lines: int = LINES) -> int:
    """Bytes of the projections of all layers: their inputs' directions, and signs in float32."""
    size = 2 if half else 4
    return shape.layers * lines * sum(
        size * inputs + 4 * outputs for inputs, outputs in shape.linears)


HEAD_BYTES = 3 * 4 * (1 << 25)
"""Of a full chunk of logits in float32, their softmax and their gradient."""


def batch_bytes(shape: Shape, tokens: int, answers: int, half: bool) -> int:
    """What a batch of so many tokens, and answer tokens, needs at its peak beside the weights."""
    logits = 3 * 4 * shape.vocabulary * answers
    return (tokens * activation_bytes(shape, half) + min(HEAD_BYTES, logits)
            + projection_bytes(shape, half))


def hours(operations: float, share: float, peak: float = PEAK) -> float:
    """On one device that reaches ``share`` of its peak rate."""
    return operations / (peak * share) / 3600


MODELS = {
    "SmolLM2-135M": Shape(576, 1536, 30, 9, 3, 49152),
    "Llama-3.2-1B": Shape(2048, 8192, 16, 32, 8, 128256),
    "Llama-3-8B": Shape(4096, 14336, 32, 32, 8, 128256, 128, False),
    "Llama-3-70B": Shape(8192, 28672, 80, 64, 8, 128256, 128, False),
}
"""Those of the README's table."""

SIZES = {
    "1M": Shape(128, 352, 4, 2, 1, 4096),
    "4M": Shape(256, 688, 4, 4, 2, 4096),
    "16M": Shape(384, 1024, 9, 6, 3, 4096),
    "64M": Shape(640, 1728, 14, 10, 5, 4096),
    "256M": Shape(1024, 2752, 22, 16, 8, 4096),
    "1B": Shape(2048, 5504, 21, 32, 16, 4096),
}
"""Of random weights, about as large as they are called."""
