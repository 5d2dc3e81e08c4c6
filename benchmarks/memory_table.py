"""Memory that a GPU needs, by phase, computed from a model's shape, and which models fit into 24, 80 and 141 GB.

    python benchmarks/memory_table.py

The settings are those of configs/scale. docs/scaling.md explains the tables; memory_check.py compares the formulas with
measurements. The formulas count tensors, not the driver's context or an allocator's unused memory; therefore a tenth of
the GPU is left free.
"""

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table  # noqa: E402
from benchmarks.model_shapes import SHAPES, Shape  # noqa: E402

GB, MB = 1e9, 1e6
GPUS = (24, 80, 141)
FREE = 0.1  # fraction of the GPU for the context and for fragmentation
LOGITS = 2**23  # maximum number of logits held at once where tokens are sampled (rollouts/embedded.py)
TILE = 2**22  # maximum number of logits held at once where tokens are scored (policies/fused.py)


@dataclass(frozen=True)
class Setting:
    """Training of a model on each of `gpus` GPUs.

    Fields:
        rank: rank of LoRA; None trains all weights.
        reference: whether a KL penalty needs a reference policy.
        weights: bytes per stored weight; adapters take 4.
        compute: bytes per number in matrix products.
        moment: bytes of each of Adam's two moments per weight.
        fused: whether Adam's step needs no copies.
        checkpointing: whether the activations of a layer are recomputed.
        tokens: batch.update_token_budget.
        rows: completions generated at once on a GPU.
        prompt, completion: lengths in tokens.
        group: completions per prompt.
        cpu: whether this is a CPU, where the decoder keeps transposed copies of its matrices.
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
    """Bytes on each GPU: parts that are always there, what each phase adds, and the peak over the phases."""
    trained = shape.weights if s.rank is None else shape.adapters(s.rank)
    base = s.weights * shape.weights + (0 if s.rank is None else 4 * trained)
    copy = s.weights * shape.weights if s.reference and s.rank is None else 0
    sizes = {
        "weights": base / s.gpus,
        "reference": copy / s.gpus,
        "optimiser": 2 * s.moment * trained / s.gpus,
        "gradients": 4 * trained / s.gpus,
        "cache": cache(shape, s),
        "activations": activations(shape, s),
    }
    always = sizes["weights"] + sizes["reference"] + sizes["optimiser"]
    logits = 3 * 4 * min(LOGITS, s.rows * shape.vocabulary)
    sizes["rollout"] = gathered(shape, s, whole=True) + decoder_copies(shape, s) + sizes["cache"] + logits
    sizes["update"] = gathered(shape, s, whole=False) + pass_peak(shape, s, sizes["gradients"])
    sizes["step"] = sizes["gradients"] + (0 if s.fused else 4 * trained / s.gpus)
    sizes["peak"] = always + max(sizes["rollout"], sizes["update"], sizes["step"])
    return sizes


def gathered(shape: Shape, s: Setting, whole: bool) -> float:
    """Bytes of FSDP2's copies of weights that belong to other GPUs, in the computing precision.

    In a rollout these are all weights of the policy. In an update they are the weights outside the layers, of policy
    and reference, and the current layer beside the next one.
    """
    if s.gpus == 1:
        return 0
    adapters = 0 if s.rank is None else shape.adapters(s.rank) / shape.layers
    layer = (shape.weights - shape.outside) / shape.layers + adapters
    outside = shape.outside * (2 if s.reference and s.rank is None else 1)
    return s.compute * (outside + layer * (shape.layers if whole else 2))


def decoder_copies(shape: Shape, s: Setting) -> float:
    """Bytes of matrices that the engine cannot share with the module: other precision, merged adapters, transposed."""
    stored = s.compute if s.gpus > 1 else s.weights
    copied = shape.matrices if s.rank is not None or stored != s.compute or s.cpu else 0
    return s.compute * (copied + (shape.embedding if stored != s.compute else 0))


def cache(shape: Shape, s: Setting) -> float:
    """Bytes of keys and values of the rows that are generated at once.

    A cache grows by doubling; while it grows, the smaller one still exists.
    """
    shared = s.prompt >= 128
    first = 1 if shared else s.prompt + 1
    capacity = first
    while capacity < (s.completion if shared else s.prompt + s.completion):
        capacity *= 2
    smaller = capacity / 2 if capacity > first else 0
    prompts = math.ceil(s.rows / s.group) * s.prompt
    return 2 * s.compute * shape.layers * shape.keys * (s.rows * (capacity + smaller) + prompts)


def activations(shape: Shape, s: Setting) -> float:
    """Bytes that the forward pass of an update keeps for the backward pass, for `tokens` tokens of prompts and
    completions."""
    residual = s.weights if s.gpus == 1 else s.compute
    per_token = residual * shape.hidden if s.checkpointing else layer_activations(shape, s)
    return s.tokens * shape.layers * per_token


def pass_peak(shape: Shape, s: Setting, gradients: float) -> float:
    """Bytes at the largest of four moments of a pass.

    These are: the computation of log-probs; the last layer's backward pass; the first layer's, when almost all
    gradients exist and no other activations; the embedding's, whose gradient exists twice where the output layer is the
    same matrix.
    """
    all_layers, one_layer = activations(shape, s), s.tokens * layer_activations(shape, s)
    # The last norm's input and output, those at the completions' tokens, and their gradient, in float32.
    states = 4 * 4 * s.tokens * shape.hidden
    tiles = 3 * 4 * min(TILE, s.tokens * shape.vocabulary)
    full = s.rank is None
    head = 4 * shape.embedding if full else 0
    layer = (shape.weights - shape.outside) / shape.layers
    # A layer's gradients before each GPU has its part of their sum.
    unsharded = (s.compute + 4) * layer if full and s.gpus > 1 else 0
    return max(
        all_layers + states / 2 + tiles,
        all_layers + (one_layer if s.checkpointing else 0) + states / 2 + head + unsharded,
        one_layer + gradients + unsharded + (head if s.gpus > 1 else 0),
        gradients + (head if shape.tied or s.gpus > 1 else 0) + 4 * s.tokens * shape.hidden,
    )


def layer_activations(shape: Shape, s: Setting) -> float:
    """Bytes per token of one layer's activations.

    They are: norms in float32, inputs of the matrix products, queries, keys and values as attention reads them, and its
    mask as numbers. A completion's row of keys begins with its prompt.
    """
    h, q, k, m, c = shape.hidden, shape.queries, shape.keys, shape.inner, s.compute
    residual = s.weights if s.gpus == 1 else s.compute
    row = s.prompt + s.completion
    # The input in float32, and the factor of the norm's weight.
    norms = 2 * (4 * h + 4 * h + (residual * h if residual != 4 else 0))
    # Three matrices read the first norm's output, two the second's: one tensor, or one per matrix where an adapter or
    # the precision makes a copy.
    copies = c == 2 and (s.rank is not None or residual != c)
    inputs = c * ((5 if copies else 2) * h + q + m)
    attention = c * (2 * q + 2 * k * row / s.completion + shape.heads / shape.key_heads * row)
    mlp = c * 3 * m
    adapters = 0 if s.rank is None else c * 7 * s.rank
    # Copies of the matrices in the computing precision.
    matrices = sum(i * o for i, o in shape.linears) * c / s.tokens if s.rank is None and residual != c else 0
    return norms + inputs + attention + mlp + adapters + matrices


def fits(shape: Shape, s: Setting, size: int) -> bool:
    """Whether the peak fits into a GPU of `size` GB."""
    return phases(shape, s)["peak"] <= (1 - FREE) * size * GB


PARTS = "weights, 10^9|bf16|fp32|gradients, full (LoRA)|Adam fp32|bf16|8 bits|LoRA|cache|activations|recomputed".split(
    "|"
)


def parts() -> str:
    """Table of the parts of the memory on one GPU, before anything is divided."""
    rows = []
    for shape in SHAPES:
        full, lora = Setting(""), Setting("", rank=32, weights=2)
        adam = [phases(shape, replace(full, moment=bytes))["optimiser"] for bytes in (4, 2, 1)]
        lora_sizes = phases(shape, lora)
        one_layer = full.tokens * layer_activations(shape, full)
        recomputed = one_layer + activations(shape, full)
        precisions = [2 * shape.weights, 4 * shape.weights, 4 * shape.weights]
        sizes = [*precisions, *adam, lora_sizes["optimiser"], cache(shape, full), one_layer * shape.layers, recomputed]
        cells = [f"{size / GB:.1f}" for size in sizes]
        cells[2] += f" ({lora_sizes['gradients'] / GB:.2f})"
        rows.append([shape.name, f"{shape.weights / GB:.2f}", *cells])
    return markdown_table(["model", *PARTS], rows)


def peaks() -> str:
    """Table of the peak on each GPU and its phase."""
    rows = []
    for shape in SHAPES:
        cells = []
        for s in SETTINGS:
            sizes = phases(shape, s)
            phase = max(("rollout", "update", "step"), key=lambda name: sizes[name])  # noqa: B023
            cells.append(f"{sizes['peak'] / GB:.0f} ({phase})")
        rows.append([shape.name, *cells])
    return markdown_table(["model", *(s.name for s in SETTINGS)], rows)


def choice() -> str:
    """Table of the first kind of training that fits: all weights with a reference, without one, adapters."""
    kinds = {
        "all weights": Setting(""),
        "all weights, no KL": Setting("", reference=False),
        "LoRA": Setting("", rank=32, weights=2),
        "LoRA, 8 rows": Setting("", rank=32, weights=2, rows=8),
    }
    places = [(1, size) for size in GPUS] + [(8, size) for size in GPUS[1:]] + [(16, size) for size in GPUS[1:]]
    rows = []
    for shape in SHAPES:
        cells = []
        for gpus, size in places:
            fitting = (kind for kind, s in kinds.items() if fits(shape, replace(s, gpus=gpus, fused=gpus == 1), size))
            cells.append(next(fitting, "-"))
        rows.append([shape.name, *cells])
    return markdown_table(["model", *(f"{gpus} x {size} GB" for gpus, size in places)], rows)


if __name__ == "__main__":
    print("\n\n".join([parts(), peaks(), choice()]))
