"""The formulas of memory_table.py beside what tensors really hold: rollout, update and optimiser's step of small models on this CPU.

python benchmarks/memory_check.py            # the last table of docs/scaling.md; the last two cases have SmolLM2-135M's shape
python benchmarks/memory_check.py --cases 6
"""

import sys
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from assets.make_untrained import reasoner_tokenizer  # noqa: E402
from benchmarks.memory_table import MB, SHAPES, Setting, Shape, markdown, phases  # noqa: E402
from lightning_modules.core.micro_batches import micro_batches  # noqa: E402
from policies import LoRA, Policy, PolicyParams  # noqa: E402
from rollouts import EmbeddedEngine, SamplingParams  # noqa: E402


class Live(TorchDispatchMode):
    """Bytes of all tensors that exist at a time, from the storages that operations make to their end. CPU only: the backward pass must run in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.sizes:
            self.sizes[key] = size
            self.now += size
            weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return found


def measured(shape: Shape, s: Setting) -> dict[str, float]:
    """Bytes of a real step on this CPU: what is there before it, and what rollout, update and the optimiser's step add at their peaks."""
    tokenizer = reasoner_tokenizer()
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads, head_dim=shape.size, max_position_embeddings=4096,
        tie_word_embeddings=shape.tied, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    params = PolicyParams("", "float32" if s.weights == 4 else "bfloat16", None, s.checkpointing)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        policy = Policy(
            replace(params, model=folder, lora=LoRA(s.rank) if s.rank else None), with_reference=s.reference
        )
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=s.fused)
    end, prompts = tokenizer.eos_token_id, [[7 + i * j % 90 for j in range(s.prompt)] for i in range(s.rows // s.group)]
    forced = [
        [7 + (i + j) % 90 for j in range(s.completion - 1)] + [end] for i in range(s.rows)
    ]  # every completion its length
    engine, live = EmbeddedEngine(), Live()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=s.compute == 2, cache_enabled=False)

    def update(batch: Any) -> None:
        for micro in micro_batches(batch, slice(0, s.rows), s.tokens, None):
            logprobs, _ = policy.logprobs(batch.prompt_groups(micro.rows))
            (logprobs * batch.completion_mask[micro.rows, : micro.width]).sum().backward()

    found = {}
    with live, autocast:
        for tensor in policy.state_dict(keep_vars=True).values():
            live.add(tensor)
        found["weights + reference"] = float(live.now)
        for _ in range(2):  # the first makes the optimiser's state, and the comparisons that are made once
            start = live.peak = live.now
            batch = engine.generate(
                policy,
                prompts,
                [{"prompt": str(i)} for i in range(len(prompts))],
                s.group,
                SamplingParams(s.completion),
                forced,
            )
            found["+ rollout"], start, live.peak = float(live.peak - start), live.now, live.now
            update(batch)
            found["+ update"], live.peak = float(live.peak - start), live.now
            optimizer.step()
            found["+ step"] = float(live.peak - start)
            optimizer.zero_grad()
            del batch
    found["optimiser"] = float(live.now) - found["weights + reference"]
    return found


COMPARED = ["weights + reference", "+ rollout", "+ update", "+ step", "optimiser"]
SMALL = Shape("4 layers of 256", 4, 256, 704, 4, 2, 64, 8192)
ON_CPU = Setting("fp32, full", compute=4, checkpointing=False, tokens=1024, rows=16, prompt=64, completion=48, cpu=True)
CASES = [
    (SMALL, ON_CPU),
    (SMALL, replace(ON_CPU, name="fp32, full, checkpointing", checkpointing=True)),
    (SMALL, replace(ON_CPU, name="fp32, LoRA", rank=16)),
    (SMALL, replace(ON_CPU, name="bf16 autocast, full", compute=2, fused=False)),
    (
        SMALL,
        replace(ON_CPU, name="bf16 weights, LoRA, checkpointing", compute=2, weights=2, rank=16, checkpointing=True),
    ),
    (
        replace(SMALL, name="8 layers of 512", layers=8, hidden=512, inner=1408, heads=8),
        replace(ON_CPU, prompt=160, rows=8),
    ),
    (SHAPES[0], replace(ON_CPU, tokens=512, rows=8)),
    (SHAPES[0], replace(ON_CPU, name="fp32, LoRA, checkpointing", tokens=512, rows=8, rank=16, checkpointing=True)),
]


def check(cases: int = len(CASES)) -> None:
    """Formula and measurement of the first cases, in MB."""
    rows = []
    for shape, s in CASES[:cases]:
        s = replace(s, tokens=s.rows // s.group * s.prompt + s.rows * s.completion)
        expected, real = phases(shape, s), measured(shape, s)
        wanted = [expected[n] for n in ("rollout", "update", "step", "optimiser")]
        wanted.insert(0, expected["weights"] + expected["reference"])
        cells = [
            f"{w / MB:.1f} / {real[n] / MB:.1f} ({w / real[n] - 1:+.0%})" for w, n in zip(wanted, COMPARED, strict=True)
        ]
        rows.append([shape.name, s.name, *cells])
        print(rows[-1], file=sys.stderr, flush=True)
    print(markdown(["model", "setting", *COMPARED], rows))


if __name__ == "__main__":
    from jsonargparse import CLI

    torch.set_num_threads(1)
    CLI(check)
