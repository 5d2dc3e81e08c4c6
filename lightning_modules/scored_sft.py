"""Supervised fine-tuning whose validation samples completions and scores them.

A low loss on given responses does not say what the policy can do. Here the rewards of a validation do, so that the best
checkpoint can be chosen by them (callbacks.ExportPolicy with `monitor`). Critique fine-tuning on one problem (arXiv
2506.03295) trains on critiques and is validated on solving other problems; SleepCoT (arXiv 2410.16924) trains on
rationales and is validated by a rubric.

    python main.py fit --config configs/critique.yaml
    python main.py fit --config configs/sleep_cot.yaml
"""

import copy

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.sampling_module import SamplingModule
from lightning_modules.sft import SFT
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, Engine, SamplingParams


class ScoredSFT(SFT, SamplingModule):
    """SFT on rows with `prompt`, `response` and an optional `prefix`; rewards score completions in validation only.

    Args:
        policy: the model to train.
        rewards: rewards of the completions of validation, test and prediction; they do not act on the training.
        max_length: maximum length of a training sequence, in tokens; a longer row is an error.
        sampling: how completions are drawn.
        evaluation: settings of validation, test and prediction.
        engine: what generates; the embedded engine if None.
        optimizer, lr_scheduler: as in every module.
    """

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        max_length: int = 1024,
        sampling: SamplingParams = SamplingParams(max_new_tokens=1024),
        evaluation: Evaluation = Evaluation(),
        engine: Engine | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            policy,
            rewards=rewards,
            max_length=max_length,
            batch=BatchPlan(1, 1),  # nothing is rolled out in training
            sampling=copy.deepcopy(sampling),
            evaluation=copy.deepcopy(evaluation),
            engine=engine,
            environment=None,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )

    # SFT precedes SamplingModule, whose stages these are.
    on_validation_epoch_start = SamplingModule.on_validation_epoch_start
    validation_step = SamplingModule.validation_step
    on_validation_epoch_end = SamplingModule.on_validation_epoch_end
    on_test_epoch_start = SamplingModule.on_test_epoch_start
    test_step = SamplingModule.test_step
    on_test_epoch_end = SamplingModule.on_test_epoch_end
    predict_step = SamplingModule.predict_step
