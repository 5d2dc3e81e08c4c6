"""The command line within the test's own process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_config(
    names: Sequence[str],
    model: str,
    *arguments: str,
    stage: str = "fit",
    unchanged: Sequence[str] = (),
    **changes: object,
) -> Any:
    """`main.py STAGE` with these files of configs/, made small: one step, no validation, logger or checkpoint.

    A rollout is two prompts of four completions of at most 8 tokens.

    Args:
        names: of configs/, without .yaml; the later wins.
        model: folder of the model.
        arguments: further arguments, before the small settings.
        stage: fit, validate, test or predict.
        unchanged: keys of the small settings that keep the configuration's value.
        changes: settings by their full key, `**{"trainer.max_steps": 2}`.
    """
    from main import main  # seconds, which the scripts that only train can spare

    small = {
        "model.policy.model": model,
        "model.batch.prompts_per_rollout": 2,
        "model.batch.group_size": 4,
        "model.sampling.max_new_tokens": 8,
        "data.train_size": 8,
        "data.val_size": 2,
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 0,
        "trainer.logger": "false",
        "trainer.enable_checkpointing": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.accelerator": "cpu",
    } | changes
    settings = [f"--{name}={value}" for name, value in small.items() if name not in unchanged]
    return main([stage, *(f"--config={ROOT}/configs/{name}.yaml" for name in names), *arguments, *settings])
