"""Training of missing reward and cost models: the same modules, in a separate trainer, cached by their inputs."""

import shutil
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger
from torch.utils.data import DataLoader

from lightning_modules.reward_models import CostModel, PreferenceModule, RewardModel
from policies import LoRA, PolicyParams
from policies.locate import locate, model_identity
from support.errors import ConfigError
from support.files import cache_folder
from support.identity import identity_fingerprint
from support.processes import alone
from support.prompt_identity import prompt_fingerprints, split_by_prompt
from support.seeding import derive_seed, isolated_rng, run_seed
from support.seen_prompts import SeenPrompts
from tracking.runs import mlflow_runs

Rows = list[dict[str, Any]]
MODELS: dict[str, type[PreferenceModule]] = {"reward": RewardModel, "cost": CostModel}


@dataclass
class ScorerTraining:
    """Settings of the training of reward and cost models; the defaults are HC-RLHF's.

    Args:
        lr: peak learning rate of a cosine schedule with 3 % warm-up.
        weight_decay: weight decay of AdamW.
        epochs: passes over the pairs.
        batch_size: pairs per step.
        regularisation: weight of the mean squared score.
        cost_loss: signed ties zero to the border between safe and unsafe; pairwise leaves the scale's zero arbitrary.
        val_share: fraction of the prompts held out to report accuracies.
        lora: train adapters instead of all weights.
    """

    lr: float = 2e-5
    weight_decay: float = 0.1
    epochs: int = 2
    batch_size: int = 16
    regularisation: float = 1e-3
    cost_loss: Literal["signed", "pairwise"] = "signed"
    val_share: float = 0.1
    lora: LoRA | None = field(default=None)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.lr <= 0 or not 0 < self.val_share < 1:
            raise ConfigError(
                "model.scorers needs epochs >= 1, batch_size >= 1, lr > 0 and 0 < val_share < 1, got "
                f"{self.epochs}, {self.batch_size}, {self.lr} and {self.val_share}."
            )


def trained_scorer(
    kind: Literal["reward", "cost"], policy: PolicyParams, rows: Rows, params: ScorerTraining, parent: L.Trainer
) -> str:
    """The folder of the trained model, from the cache if the same model was trained before.

    Raises:
        ConfigError: for too few pairs, or pairs without the labels that this kind needs.
    """
    train, validation = split_by_prompt(rows, params.val_share)
    if len(train) < params.batch_size or not validation:
        raise ConfigError(
            f"{len(rows)} preference pairs give {len(train)} to train the {kind} model and {len(validation)} to hold "
            f"out; at least {params.batch_size} and 1 are needed. Give more pairs in data.preferences, or trained "
            "models in model.reward_model and model.cost_model."
        )
    settings = asdict(params) | {"cost_loss": params.cost_loss if kind == "cost" else ""}
    method = MODELS[kind]
    start = [model_identity(policy.model), policy.dtype, type(parent.accelerator).__name__]
    key = identity_fingerprint(kind, start, settings, run_seed(), rows, method, _module)
    folder = cache_folder("scorers", f"{kind}-{key[:24]}")
    if (folder / "facts.json").is_file():
        print(f"{kind.capitalize()} model: trained before, taken from {folder}")
        return str(folder)
    module = _module(kind, policy, params, len(train))
    logger = _child_logger(parent, f"{kind} model seed {run_seed()}")
    if logger is not None:
        facts_of_run = {"method": method.__name__, "model": policy.model, "seed": run_seed(), "dtype": policy.dtype}
        logger.log_hyperparams(facts_of_run | {"pairs": len(train), "held_out_pairs": len(validation)} | settings)
    trainer = L.Trainer(
        max_epochs=params.epochs,
        logger=logger or False,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        accelerator=parent.accelerator,
        devices=1,
    )
    steps = len(train) // params.batch_size
    print(
        f"{kind.capitalize()} model: training on {len(train)} pairs, {params.epochs} epoch(s) of {steps} steps ...",
        flush=True,
    )
    with alone(), isolated_rng("scorer", kind, run_seed()):
        order = torch.Generator().manual_seed(derive_seed("pairs", run_seed()))
        pairs: Any = (train, validation)  # lists, which a DataLoader takes
        loader = DataLoader[Any](
            pairs[0], params.batch_size, shuffle=True, drop_last=True, collate_fn=list, generator=order
        )
        held_out = DataLoader[Any](pairs[1], 64, collate_fn=list)
        trainer.fit(module, loader, held_out)
    metrics = {
        k.removeprefix("val/"): round(float(v), 6) for k, v in trainer.callback_metrics.items() if k.startswith("val/")
    }
    print(f"{kind.capitalize()} model: held-out " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()), flush=True)
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    facts = {
        "kind": kind,
        "id": key,
        "held_out": metrics,
        "pairs": len(train),
        "held_out_pairs": len(validation),
        "training": settings,
        "base": policy.model,
        "prompts": sorted(prompt_fingerprints(row["prompt"] for row in rows)),
    }
    module.policy.save(temporary, facts)
    seen = SeenPrompts()
    seen.update(SeenPrompts.of_model(locate(policy.model), policy.model), through=policy.model)
    seen.add(f"the preference pairs of the {kind} model", [row["prompt"] for row in rows])
    seen.save(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    return str(folder)


def _module(kind: str, policy: PolicyParams, params: ScorerTraining, pairs: int) -> PreferenceModule:
    steps = params.epochs * (pairs // params.batch_size)
    base = PolicyParams(policy.model, policy.dtype, params.lora)

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=params.lr, weight_decay=params.weight_decay, betas=(0.9, 0.95))

    def schedule(built: torch.optim.Optimizer) -> Any:
        warm = max(1, round(0.03 * steps))
        up = torch.optim.lr_scheduler.LinearLR(built, 1 / warm, total_iters=warm)
        down = torch.optim.lr_scheduler.CosineAnnealingLR(built, max(1, steps - warm))
        return torch.optim.lr_scheduler.SequentialLR(built, [up, down], [warm])

    if kind == "reward":
        return RewardModel(base, regularisation=params.regularisation, optimizer=optimizer, lr_scheduler=schedule)
    return CostModel(
        base,
        loss=params.cost_loss,
        regularisation=params.regularisation,
        optimizer=optimizer,
        lr_scheduler=schedule,
    )


def _child_logger(parent: L.Trainer, name: str) -> Logger | None:
    """A logger of a child run under the parent's run, if MLflow tracks the parent."""
    for logger in parent.loggers:
        if isinstance(logger, MLFlowLogger) and mlflow_runs(parent):
            return MLFlowLogger(
                experiment_name=logger._experiment_name,
                run_name=name,
                tracking_uri=logger._tracking_uri,
                tags={"mlflow.parentRunId": str(logger.run_id)},
            )
    return None
