"""Memory that a GPU needs, by phase, from a model's shape; and which setting of configs/scale fits into 24, 80 and 141 GB.

    python benchmarks/memory_table.py

docs/scaling.md explains the tables; memory_check.py sets the formulas beside measurements. Counted are the tensors: not the driver's context, not what an allocator keeps beside them. A tenth of the GPU is therefore left free.
"""

import math
from dataclasses import dataclass, replace

GB, MB = 1e9, 1e6
GPUS = (24, 80, 141)
FREE = 0.1  # of the GPU, for the context and for fragments
LOGITS, TILE = (
    2**23,
    2**22,
)  # most logits held at once where tokens are drawn (rollouts/embedded.py), and where they are scored (policies/fused.py)


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model.

    Fields:
        inner: width of the MLP. size: of a head. tied: output layer and embedding are one. bias: on queries, keys and values.
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
        return self.heads * self.size

    @property
    def keys(self) -> int:
        return self.key_heads * self.size

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's matrices."""
        h, q, k, m = self.hidden, self.queries, self.keys, self.inner
        return [(h, q), (h, k), (h, k), (q, h), (h, m), (h, m), (m, h)]

    @property
    def matrices(self) -> int:
        """Weights in the matrices of all layers."""
        return self.layers * sum(i * o for i, o in self.linears)

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def outside(self) -> int:
        """Weights outside of the layers."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def weights(self) -> int:
        bias = self.queries + 2 * self.keys if self.bias else 0
        return self.matrices + self.layers * (2 * self.hidden + bias) + self.outside

    def adapters(self, rank: int) -> int:
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


@dataclass(frozen=True)
class Setting:
    """How a model is trained on each of `gpus` GPUs.

    Fields:
        rank: of LoRA; None trains all weights. reference: whether a KL penalty needs one.
        weights: bytes of a weight as it is kept; adapters are kept in 4. compute: bytes of a number in matrix products.
        moment: bytes of each of Adam's two numbers a weight. fused: whether Adam's step needs no copies.
        checkpointing: activations of a layer are computed again. tokens: batch.update_token_budget. rows: completions generated at once on a GPU.
        prompt, completion: tokens. group: completions of a prompt. cpu: the decoder then keeps transposed copies of its matrices.
    """

    name: str
    gpus: int = 1
    rank: int | None = None
    reference: bool = True
    weights: int = 4
    compute: int = 2
    moment: int = 4
    fused: bool = True
    checkpointing: bool = True
    tokens: int = 16384
    rows: int = 64
    prompt: int = 256
    completion: int = 1024
    group: int = 8
    cpu: bool = False


SETTINGS = [
    Setting("one_gpu_lora", rank=32, weights=2),
    Setting("one_gpu_full"),
    Setting("eight_gpus_fsdp2, LoRA", gpus=8, rank=32, weights=2, fused=False),
    Setting("eight_gpus_fsdp2, full", gpus=8, fused=False),
    Setting("slurm_fsdp2, full", gpus=16, fused=False),
]


def phases(shape: Shape, s: Setting) -> dict[str, float]:
    """Bytes on each GPU: what is always there, what a phase adds, and the peak over the phases."""
    trained, kept = (shape.weights, 4) if s.rank is None else (shape.adapters(s.rank), 4)
    base = s.weights * shape.weights + (0 if s.rank is None else kept * trained)
    copy = s.weights * shape.weights if s.reference and s.rank is None else 0
    found = {
        "weights": base / s.gpus,
        "reference": copy / s.gpus,
        "optimiser": 2 * s.moment * trained / s.gpus,
        "gradients": kept * trained / s.gpus,
        "cache": cache(shape, s),
        "activations": activations(shape, s),
    }
    always = found["weights"] + found["reference"] + found["optimiser"]
    logits = 3 * 4 * min(LOGITS, s.rows * shape.vocabulary)
    found["rollout"] = gathered(shape, s, whole=True) + decoder_copies(shape, s) + found["cache"] + logits
    found["update"] = gathered(shape, s, whole=False) + pass_peak(shape, s, found["gradients"])
    found["step"] = found["gradients"] + (0 if s.fused else kept * trained / s.gpus)
    found["peak"] = always + max(found["rollout"], found["update"], found["step"])
    return found


def gathered(shape: Shape, s: Setting, whole: bool) -> float:
    """FSDP2's copies of weights that belong to other GPUs, in the computing precision: all of the policy in a rollout; in an update what is outside of
    the layers, of policy and reference, and the layer at work beside the next one."""
    if s.gpus == 1:
        return 0
    layer = (shape.weights - shape.outside) / shape.layers + (
        0 if s.rank is None else shape.adapters(s.rank) / shape.layers
    )
    outside = shape.outside * (2 if s.reference and s.rank is None else 1)
    return s.compute * (outside + layer * (shape.layers if whole else 2))


def decoder_copies(shape: Shape, s: Setting) -> float:
    """Matrices that the engine cannot share with the module: in another precision, with adapters added, or transposed."""
    there = s.compute if s.gpus > 1 else s.weights
    copied = shape.matrices if s.rank is not None or there != s.compute or s.cpu else 0
    return s.compute * (copied + (shape.embedding if there != s.compute else 0))


def cache(shape: Shape, s: Setting) -> float:
    """Keys and values of the rows that are generated at once; a cache grows by doubling, and while it grows the smaller one is still there."""
    shared = s.prompt >= 128
    first = 1 if shared else s.prompt + 1
    room = first
    while room < (s.completion if shared else s.prompt + s.completion):
        room *= 2
    growing = room / 2 if room > first else 0
    prompts = math.ceil(s.rows / s.group) * s.prompt
    return 2 * s.compute * shape.layers * shape.keys * (s.rows * (room + growing) + prompts)


def activations(shape: Shape, s: Setting) -> float:
    """What the forward pass of an update keeps for the backward pass, for `tokens` tokens of prompts and completions."""
    residual = s.weights if s.gpus == 1 else s.compute
    kept = residual * shape.hidden if s.checkpointing else layer_activations(shape, s)
    return s.tokens * shape.layers * kept


def pass_peak(shape: Shape, s: Setting, gradients: float) -> float:
    """The largest of four moments of a pass: log-probs are computed; the last layer's backward pass; the first layer's, when almost all gradients are there
    and no other activations; the embedding's, whose gradient exists twice where the output layer is the same matrix."""
    kept, one = activations(shape, s), s.tokens * layer_activations(shape, s)
    states = (
        4 * 4 * s.tokens * shape.hidden
    )  # the last norm's input and output, those at completions' tokens, and their gradient, in float32
    tiles = 3 * 4 * min(TILE, s.tokens * shape.vocabulary)
    full = s.rank is None
    head = 4 * shape.embedding if full else 0
    layer = (shape.weights - shape.outside) / shape.layers
    unsharded = (
        (s.compute + 4) * layer if full and s.gpus > 1 else 0
    )  # a layer's gradients before each GPU has its part of their sum
    return max(
        kept + states / 2 + tiles,
        kept + (one if s.checkpointing else 0) + states / 2 + head + unsharded,
        one + gradients + unsharded + (head if s.gpus > 1 else 0),
        gradients + (head if shape.tied or s.gpus > 1 else 0) + 4 * s.tokens * shape.hidden,
    )


def layer_activations(shape: Shape, s: Setting) -> float:
    """Bytes a token: norms in float32, inputs of the matrix products, queries, keys and values as attention reads them, its mask as numbers. A completion's row
    of keys begins with its prompt."""
    h, q, k, m, c = shape.hidden, shape.queries, shape.keys, shape.inner, s.compute
    residual = s.weights if s.gpus == 1 else s.compute
    row = s.prompt + s.completion
    norms = 2 * (
        4 * h + 4 * h + (residual * h if residual != 4 else 0)
    )  # the input in float32, and what is multiplied by the norm's weight
    # Three matrices read the first norm's output, two the second's: one tensor, or one for each where an adapter or the precision makes a copy.
    copies = c == 2 and (s.rank is not None or residual != c)
    inputs = c * ((5 if copies else 2) * h + q + m)
    attention = c * (2 * q + 2 * k * row / s.completion + shape.heads / shape.key_heads * row)
    mlp = c * 3 * m
    adapters = 0 if s.rank is None else c * 7 * s.rank
    matrices = (
        sum(i * o for i, o in shape.linears) * c / s.tokens if s.rank is None and residual != c else 0
    )  # in the computing precision
    return norms + inputs + attention + mlp + adapters + matrices


def fits(shape: Shape, s: Setting, size: int) -> bool:
    return phases(shape, s)["peak"] <= (1 - FREE) * size * GB


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def parts() -> str:
    """What there is to divide or to avoid, on one GPU."""
    head = [
        "model",
        "weights, 10^9",
        "bf16",
        "fp32",
        "gradients, full (LoRA)",
        "Adam fp32",
        "bf16",
        "8 bits",
        "LoRA",
        "cache",
        "activations",
        "recomputed",
    ]
    rows = []
    for shape in SHAPES:
        full, lora = Setting(""), Setting("", rank=32, weights=2)
        adam = [phases(shape, replace(full, moment=bytes))["optimiser"] for bytes in (4, 2, 1)]
        small = phases(shape, lora)
        kept = [
            s.tokens * layer_activations(shape, s) * (1 if s.checkpointing else shape.layers)
            for s in (replace(full, checkpointing=False), full)
        ]
        kept[1] += activations(shape, full)
        numbers = [
            2 * shape.weights,
            4 * shape.weights,
            4 * shape.weights,
            *adam,
            small["optimiser"],
            cache(shape, full),
            *kept,
        ]
        cells = [f"{n / GB:.1f}" for n in numbers]
        cells[2] += f" ({small['gradients'] / GB:.2f})"
        rows.append([shape.name, f"{shape.weights / GB:.2f}", *cells])
    return markdown(head, rows)


def peaks() -> str:
    """The peak on each GPU, and the phase that has it."""
    rows = []
    for shape in SHAPES:
        cells = []
        for s in SETTINGS:
            found = phases(shape, s)
            cells.append(
                f"{found['peak'] / GB:.0f} ({max(('rollout', 'update', 'step'), key=lambda phase: found[phase])})"
            )
        rows.append([shape.name, *cells])
    return markdown(["model", *(s.name for s in SETTINGS)], rows)


def choice() -> str:
    """What fits where: all weights with a reference, all weights without one, adapters."""
    wanted = {
        "all weights": Setting(""),
        "all weights, no KL": Setting("", reference=False),
        "LoRA": Setting("", rank=32, weights=2),
        "LoRA, 8 rows": Setting("", rank=32, weights=2, rows=8),
    }
    places = [(1, size) for size in GPUS] + [(8, size) for size in GPUS[1:]] + [(16, size) for size in GPUS[1:]]
    rows = []
    for shape in SHAPES:
        options = [
            [name for name, s in wanted.items() if fits(shape, replace(s, gpus=n, fused=n == 1), size)]
            for n, size in places
        ]
        rows.append([shape.name, *((found or ["-"])[0] for found in options)])
    return markdown(["model", *(f"{n} x {size} GB" for n, size in places)], rows)


if __name__ == "__main__":
    print("\n\n".join([parts(), peaks(), choice()]))
