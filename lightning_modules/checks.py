"""What can be known to fail before anything is sampled."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn

from rewards.self_check import report_golds
from support.errors import ConfigError

if TYPE_CHECKING:
    from lightning_modules.on_policy import OnPolicyModule

Rows = list[dict[str, Any]]


def check_data(module: "OnPolicyModule", stage: str) -> None:
    """Make the splits that a stage uses; refuse rows without the rewards' columns and prompts that leave no room for a completion."""
    data = getattr(module.trainer, "datamodule", None)
    if data is None or not hasattr(data, "rows"):
        return
    used = {"fit": ("train", "val", "safety"), "validate": ("val",), "test": ("test", "safety"), "predict": ("val",)}[stage]
    splits = {split: data.rows(split) for split in used}
    for row in [row for split, rows in splits.items() if split != "safety" and stage != "predict" for row in rows]:
        for reward in module.rewards:
            reward.check_columns(row)
    if stage != "predict":
        _check_golds(module, [row for split, rows in splits.items() if split != "safety" for row in rows])
    _check_lengths(module, splits)


def _check_golds(module: "OnPolicyModule", rows: Rows) -> None:
    """Warn of rows whose own answer does not earn full marks; refuse data where none does."""
    for reward in module.rewards:
        if (paragraph := report_golds(reward, rows)) is not None:
            rank_zero_warn(paragraph)


def _check_lengths(module: "OnPolicyModule", splits: dict[str, Rows]) -> None:
    module.configure_model()
    context = module.policy.context
    if context is None:
        return
    room = context - module.sampling.max_new_tokens
    for split, rows in splits.items():
        for row in rows:
            # A token has at least one byte, so most prompts need not be encoded to know that they fit.
            if len(str(row["prompt"]).encode()) + 256 > room and (length := len(module.prompt_tokens(row))) > room:
                raise ConfigError(
                    f"prompt {row.get('id')!r} of the {split} split has {length} tokens; with sampling.max_new_tokens={module.sampling.max_new_tokens} it "
                    f"exceeds the model's context of {context} tokens. Drop or shorten it, or lower sampling.max_new_tokens."
                )
