"""Lightning's options that a training here cannot honour, refused before anything is loaded.

docs/lightning_options.md lists every option.
"""

from typing import Any

from support.errors import ConfigError

#: precision that on-policy training supports; weights in another dtype are a setting of the policy
PRECISIONS = ("32-true", "bf16-mixed")
#: callbacks of Lightning by class name: what is wrong with them here, and what to do instead
CALLBACKS = {
    "StochasticWeightAveraging": (
        "copies the module before the model is loaded, and so averages nothing",
        "Use lightning.pytorch.callbacks.EMAWeightAveraging in its place",
    ),
    "LearningRateFinder": (
        "searches for an attribute `lr` and for a loss that a rollout does not return",
        "Remove it, and compare short runs with different model.optimizer.lr",
    ),
    "BatchSizeFinder": (
        "searches for an attribute `batch_size`",
        "Remove it, and set model.batch; a pass that does not fit into memory is halved by itself",
    ),
    "BackboneFinetuning": (
        "searches for an attribute `backbone`",
        "Remove it, and set model.policy.lora to train few weights",
    ),
    "ModelPruning": ("prunes weights that generation reads elsewhere", "Remove it, and prune the exported model"),
}
#: the same, for modules that take their own optimiser steps
MANUAL = {
    "GradientAccumulationScheduler": (
        "accumulates over batches, but a rollout is updated with all its passes",
        "Remove it, and raise model.batch.prompts_per_rollout; model.batch.update_token_budget bounds the memory",
    ),
}


def check_trainer(trainer: Any, module: Any) -> None:
    """Refuse a trainer whose options the module cannot honour.

    Args:
        trainer: Lightning's, about to fit. module: a PosttrainModule.

    Raises:
        ConfigError: one paragraph with the option and what to set instead.
    """
    if module._compiler_ctx is not None:
        raise ConfigError(
            f"{type(module).__name__} was compiled with torch.compile, which cannot follow a rollout through sampling, "
            "rewards and metrics. Give the trainer the module itself."
        )
    for callback in trainer.callbacks:
        name = type(callback).__name__
        refused = CALLBACKS if module.automatic_optimization else CALLBACKS | MANUAL
        if name in refused:
            fault, remedy = refused[name]
            raise ConfigError(f"trainer.callbacks holds {name}, which {fault}. {remedy}.")
        monitor = getattr(callback, "monitor", None)
        if str(monitor).startswith("val/") and trainer.limit_val_batches == 0:
            raise ConfigError(
                f"{name} watches {monitor!r}, but the run has no validation because trainer.limit_val_batches is 0; "
                "raise it, or let the callback watch a metric under train/."
            )
    if trainer.reload_dataloaders_every_n_epochs:
        raise ConfigError(
            f"trainer.reload_dataloaders_every_n_epochs is {trainer.reload_dataloaders_every_n_epochs}, but a new "
            "loader begins again with the first prompts; set it to 0. The order changes with every epoch anyway."
        )
    if trainer.overfit_batches:
        raise ConfigError(
            f"trainer.overfit_batches is {trainer.overfit_batches}, but the prompts of every rollout are drawn anew; "
            "set data.train_size to the number of prompts to overfit, or use callbacks.OneShot, and limit validation "
            "with trainer.limit_val_batches."
        )
    divides_itself = type(trainer.datamodule).__module__.startswith("datamodules.")
    connector = trainer._accelerator_connector
    if connector.is_distributed and divides_itself and connector.use_distributed_sampler:
        raise ConfigError(
            f"trainer.use_distributed_sampler is true, but {type(trainer.datamodule).__name__} "
            "divides its rows among the processes itself; set it to false."
        )
    if module.policy_params.compute != "float32" and trainer.precision != "32-true":
        raise ConfigError(
            f"model.policy.compute is {module.policy_params.compute} and trainer.precision is {trainer.precision}, but "
            "one of them decides. Set trainer.precision to 32-true, or model.policy.compute to float32."
        )
    if module.policy_params.realign is not None:
        raise ConfigError(
            f"model.policy.realign is {module.policy_params.realign:g}, but it mixes two paths at inference, and "
            "training computes the one through the adapter. Set it to null for fit; validate, test, predict and chat "
            "take it."
        )
    if not module.automatic_optimization:
        _check_manual(trainer, type(module).__name__)


def _check_manual(trainer: Any, method: str) -> None:
    """The options that a module with its own optimiser steps cannot honour."""
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but {method} updates with all "
            "passes of a rollout. Set it to 1 and raise model.batch.prompts_per_rollout; "
            "model.batch.update_token_budget bounds the memory of a pass."
        )
    if trainer.gradient_clip_val:
        raise ConfigError(
            f"trainer.gradient_clip_val is {trainer.gradient_clip_val}, but {method} clips its gradients itself. "
            "Remove it and set model.max_grad_norm."
        )
    if trainer.precision not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision is {trainer.precision!r}, but {method} trains with {' or '.join(PRECISIONS)}: sampling "
            "and scoring must agree on the log-probs, and gradients are clipped by their true norm. Set "
            "trainer.precision to bf16-mixed for speed, or model.policy.compute to auto on a CPU; model.policy.dtype: "
            "bfloat16 stores the weights in 16 bits too."
        )
