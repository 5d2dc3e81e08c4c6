"""The base class of every module: loading of the policy, optimiser, checkpoint."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules.core.data_checks import prompts_of_batch
from lightning_modules.core.part_types import Factory, check_factory, check_policy
from lightning_modules.core.resumed_settings import (
    Settings,
    apply_changes,
    optimizer_settings,
    refuse_other_optimizer,
    schedule,
)
from lightning_modules.core.saved_weights import check_weights
from lightning_modules.core.trainer_checks import check_trainer
from policies import Policy, PolicyParams
from policies.locate import locate
from policies.sharding import shard
from policies.value_heads import add_value_heads
from support.errors import ConfigError
from support.seeding import isolated_rng, run_seed
from support.seen_prompts import SeenPrompts, prompts_of_data


class PosttrainModule(L.LightningModule):
    """Loads `policy` when the trainer asks for it, and stores only trained weights under LoRA.

    Args:
        policy: the model and its training settings.
        optimizer: builds the optimiser from `trained_parameters()`; AdamW with a learning rate of 1e-6 by default.
        lr_scheduler: builds a scheduler that steps once per optimiser step; None keeps the learning rate constant.
    """

    with_reference = False
    value_heads = 0  #: number of them on the policy's body, for a critic that shares it
    #: what makes a run do without a reference, and how a run resumes from its checkpoint
    no_reference = ("model.kl.coefficient 0", "Set model.kl.coefficient back to 0")
    _gathered: AbstractContextManager[None] | None = None
    policy: Any  # a Policy; a Scorer for reward and cost models

    def __init__(
        self,
        policy: PolicyParams,
        *,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        check_policy(self, policy)
        check_factory(self, "optimizer", optimizer, "parameters")
        if lr_scheduler is not None:
            check_factory(self, "lr_scheduler", lr_scheduler, "optimizer")
        # Only a configuration is plain data; safe loading could not read a checkpoint with Python objects in it.
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters(logger=False)
        else:
            self._hparams = AttributeDict()
        self.policy_params, self.optimizer_callable = policy, Factory("optimizer", optimizer)
        self.scheduler_callable = None if lr_scheduler is None else Factory("lr_scheduler", lr_scheduler)
        self.strict_loading = not policy.frozen_model
        self._seen, self._noted_data, self._noted_start = SeenPrompts(), None, False
        self.optimizer_settings: Settings = {}  # of this run, as constructed
        self._saved_settings: Settings = {}  # of the checkpoint's run, until they are compared
        self._saved_schedulers: list[dict[str, Any]] = []
        self.hooks_run = set[str]()  # hooks of the base classes that have run, see `require_hooks`

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """The module of a checkpoint, as in Lightning.

        The checkpoint of a run of the command line holds its arguments. One of a module that was built in Python does
        not, because objects are not plain data.

        Raises:
            ConfigError: the checkpoint lacks arguments that are not given.
        """
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except TypeError as error:
            if "required" not in str(error):
                raise
            raise ConfigError(
                f"{checkpoint_path} was made by a module that was built in Python, whose arguments it cannot hold "
                f"({error}). Give them again, for example {cls.__name__}.load_from_checkpoint(path, "
                "policy=PolicyParams(...), rewards=[...]), or build the module and give trainer.fit the ckpt_path."
            ) from None

    def configure_callbacks(self) -> list[L.Callback]:
        """No callbacks; it is Lightning's first call in a run, before its own checks, and so the place for ours."""
        if self.trainer.state.fn == "fit":
            check_trainer(self.trainer, self)
        return []

    def require_hooks(self, *names: str) -> None:
        """Refuse a subclass that overrides one of these hooks without calling its base class's. Raises ConfigError."""
        if missing := [name for name in names if name not in self.hooks_run]:
            raise ConfigError(
                f"{type(self).__name__} overrides {missing[0]} without its base class's, which a training needs; call "
                f"super().{missing[0]}(...) there."
            )

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights as in PyTorch; the model itself is loaded before, if it was not yet."""
        self.configure_model()
        return super().load_state_dict(state_dict, *args, **kwargs)

    def configure_model(self) -> None:
        if getattr(self, "policy", None) is None:
            # Makes the initial adapters independent of earlier random draws.
            with isolated_rng("initialisation", run_seed()):
                self.policy = Policy(self.policy_params, with_reference=self.with_reference)
                if self.value_heads:
                    add_value_heads(self.policy, self.value_heads)
            if self._trainer is not None and isinstance(strategy := self.trainer.strategy, ModelParallelStrategy):
                if strategy.device_mesh["tensor_parallel"].size() > 1:
                    raise ConfigError(
                        "trainer.strategy splits matrices over processes, which is not supported; set its "
                        "tensor_parallel_size to 1, which shards whole weights."
                    )
                dtype = torch.bfloat16 if self.precision == "bf16-mixed" else None
                shard(self.policy, strategy.device_mesh["data_parallel"], dtype)
            if self._trainer is not None and self.trainer.is_global_zero and self.policy_params.compute == "auto":
                print(f"policy.compute auto: {self.policy.compute}; {self.policy.compute_probe or 'not measured'}")

    @property
    def precision(self) -> str:
        """The precision of the matrix products under the trainer's names, whether `policy.compute` or it sets it."""
        in_bfloat16 = getattr(self.policy, "compute", "float32") == "bfloat16"
        return "bf16-mixed" if in_bfloat16 else str(self.trainer.precision)

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that the optimiser updates: the policy's; a method with a critic adds its own."""
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

    def parameter_groups(self) -> list[Any]:
        """The optimiser's argument: parameters, or groups of them with settings of their own."""
        return self.trained_parameters()

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.optimizer_callable(self.parameter_groups())
        except ValueError as error:
            raise ConfigError(
                f"the optimiser refuses its settings: {error}; change the keys under model.optimizer."
            ) from error
        if isinstance(optimizer, torch.optim.LBFGS) and not self.automatic_optimization:
            raise ConfigError(
                "model.optimizer is LBFGS, which evaluates the loss several times per step, but a rollout's update "
                "computes it once. Use another optimiser, such as torch.optim.AdamW."
            )
        self.optimizer_settings = optimizer_settings(optimizer)
        scheduler = None if self.scheduler_callable is None else self.scheduler_callable(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigError(
                "model.lr_scheduler is ReduceLROnPlateau, which waits for a metric, but schedulers step once per "
                "optimiser step. Use another scheduler, such as torch.optim.lr_scheduler.CosineAnnealingLR, or lower "
                "the learning rate by resuming with a smaller model.optimizer.lr."
            )
        if scheduler is not None:
            self.optimizer_settings["scheduler"] = schedule(scheduler)
        self._check_optimizer()
        by_step = {"scheduler": scheduler, "interval": "step"}
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": by_step}

    def scheduler_steps_so_far(self) -> int:
        """Number of steps that the learning-rate scheduler has taken, or would have taken if there were one."""
        return self.trainer.global_step

    def _check_optimizer(self) -> None:
        """Refuse a checkpoint of another optimiser, as soon as both are known."""
        if self.optimizer_settings and self._saved_settings:
            refuse_other_optimizer(self._saved_settings, self.optimizer_settings)

    def on_train_start(self) -> None:
        if not self._saved_settings:
            return
        saved, self._saved_settings = self._saved_settings, {}
        optimizer, schedulers = self.trainer.optimizers[0], self.trainer.strategy.lr_scheduler_configs
        scheduler, changes = apply_changes(
            saved, self.optimizer_settings, optimizer, self.scheduler_callable, self.scheduler_steps_so_far()
        )
        if scheduler is not None:
            schedulers[0].scheduler = scheduler
        elif schedulers:
            schedulers[0].scheduler.load_state_dict(self._saved_schedulers[0])
        if changes and self.trainer.is_global_zero:
            print(f"Resumed with other optimiser settings than the checkpoint's run: {'; '.join(changes)}", flush=True)

    def _rebuilt_from_config(self) -> set[str]:
        """Names of weights that a checkpoint leaves out because loading the model restores them."""
        # none under FSDP2: Lightning loads weights before any hook of the module runs, and wants all of them
        in_shards = self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy)
        if not self.policy_params.frozen_model or in_shards:
            return set()
        bottom = (f"{name}." for name, part in self.named_modules() if getattr(part, "is_bottom_adapter", False))
        kept, names = ("policy.value_head.", *bottom), [name for name in self.state_dict() if name[:7] == "policy."]
        return {name for name in names if "lora_" not in name and not name.startswith(kept)}

    def whole_weights(self) -> AbstractContextManager[None]:
        """Context in which every process holds all weights even if training shards them; all processes enter it."""
        return self.policy.whole() if isinstance(self.policy, Policy) else nullcontext()

    def gather_weights(self) -> None:
        """Begin a stage with whole weights, in which processes may do different work; `scatter_weights` ends it."""
        self._gathered = self.whole_weights()
        self._gathered.__enter__()

    def scatter_weights(self) -> None:
        """End the stage that `gather_weights` began."""
        if self._gathered is None:
            raise ConfigError(
                f"{type(self).__name__} overrides on_validation_epoch_start, or the same hook of a test or prediction, "
                "without its base class's; call super().on_validation_epoch_start() there."
            )
        self._gathered.__exit__(None, None, None)
        self._gathered = None  # a generator, with which the module could be neither copied nor pickled

    def export(self, folder: str | Path) -> None:
        """Write the trained model as a folder that can be loaded again; call it within `whole_weights`."""
        self.policy.save(folder)
        self.seen_prompts().save(folder)

    def seen_prompts(self) -> SeenPrompts:
        """Fingerprints of the prompts that this model has seen: its start, the run of its checkpoint, this training.

        What a start or a checkpoint does not state is listed as unknown.
        """
        if not self._noted_start:
            self._noted_start, name = True, self.policy_params.model
            self._seen.update(SeenPrompts.of_model(locate(name), name), through=name)
        data = getattr(self.trainer, "datamodule", None) if self._fits else None
        if data is not None and data is not self._noted_data:
            self._noted_data = data
            for source, prompts in prompts_of_data(data).items():
                self._seen.add(source, prompts)
        return self._seen

    @property
    def _fits(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def _note_rows(self, batch: Any) -> None:
        """Add the prompts of a batch, where no data module names them before."""
        data = getattr(self.trainer, "datamodule", None) if self._fits else None
        if not self._fits or hasattr(data, "rows") or hasattr(data, "train_data"):
            return
        if prompts := prompts_of_batch(batch):
            self._seen.add("the batches of a training with a loader of its own", prompts)
        else:
            self._seen.unknown.add("a training whose batches hold no readable prompts")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._note_rows(batch)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._note_rows(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["module"] = type(self).__name__
        checkpoint["seen_prompts"] = self.seen_prompts().state_dict()
        checkpoint["optimizer_settings"] = self.optimizer_settings
        checkpoint["compute"] = getattr(self.policy, "compute", "float32")
        for name in self._rebuilt_from_config():
            del checkpoint["state_dict"][name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (made_by := checkpoint.get("module")) != type(self).__name__:
            raise ConfigError(
                f"the checkpoint was made by {made_by or 'another program'}, not by {type(self).__name__}. To continue "
                "from its weights with another method, export them with callbacks.ExportPolicy and set "
                "model.policy.model to the exported folder."
            )
        if "seen_prompts" in checkpoint:
            self._seen.update(SeenPrompts.from_state_dict(checkpoint["seen_prompts"]))
        else:
            self._seen.unknown.add("the run of a checkpoint without fingerprints of its prompts")
        if checkpoint.get("optimizer_settings"):
            # Lightning would restore the scheduler's settings too, or fail at those of another class.
            self._saved_settings = checkpoint["optimizer_settings"]
            self._saved_schedulers, checkpoint["lr_schedulers"] = checkpoint.get("lr_schedulers", []), []
            self._check_optimizer()
        self.configure_model()
        if self.policy_params.compute == "auto" and "compute" in checkpoint:
            self.policy.compute = checkpoint["compute"]  # another machine's choice would change the resumed run
        if "state_dict" not in checkpoint:  # a sharded checkpoint, which the strategy loads and checks
            return
        saved = checkpoint["state_dict"]
        if any(".reference." in name for name in saved) and self.policy_params.lora is not None:
            self.policy.add_reference_adapter()
        check_weights(self.state_dict(), saved, self._rebuilt_from_config(), self.no_reference)
