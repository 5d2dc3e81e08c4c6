"""Configurations that an earlier version wrote: what has a new form is brought up to date while the file is read.

Modules that have moved need nothing here: their former names can be imported (support/moved.py). Two things remain.

1. Earlier versions wrote null for a part that was left at the method's own values (`kl: null`). Parts now stand with
   their values in the signature, and null is a value only where the type allows it. Such a null is dropped, so that
   the method's values hold as before.
2. They wrote the name of a function for the default optimiser. The function's values are written out instead.
"""

from typing import Any

import yaml
from jsonargparse import get_loader

from cli.parameters import accepts_none, dataclass_of, parameters
from support.errors import ConfigError


def _adamw(lr: float) -> dict[str, Any]:
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "weight_decay": 0.0}}


#: functions that were the methods' default optimisers -> their values
OPTIMIZERS = {
    "lightning_modules.base.adamw": _adamw(1e-6),
    "lightning_modules.core.posttrain_module.adamw": _adamw(1e-6),
    "lightning_modules.few_tokens.adapter_adamw": _adamw(1e-4),
    "lightning_modules.prorl.prorl_adamw": _adamw(2e-6),
    "lightning_modules.still3.still3_adamw": _adamw(2e-6),
}
#: parts of a method that were null by default, and that some methods no longer take
PARTS = (
    "advantage", "aggregation", "batch", "constraint", "evaluation", "forcing", "kl", "loss", "mode_rewards",
    "reference", "sampling", "scorers", "shaping", "supervised", "test", "verification",
)  # fmt: skip


def brought_up_to_date(content: str) -> str:
    """The text of a configuration in today's form; unchanged if it has that form, or is not a mapping."""
    try:
        config = get_loader("yaml")(content)
    except yaml.YAMLError:
        return content
    if not isinstance(config, dict):
        return content
    updated = _updated(config)
    return content if updated == config else str(yaml.safe_dump(updated, sort_keys=False, allow_unicode=True))


def _updated(value: Any) -> Any:
    if isinstance(value, str):
        return OPTIMIZERS.get(value, value)
    if isinstance(value, list):
        return [_updated(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _updated(item) for key, item in value.items()}
    if isinstance(value.get("class_path"), str) and isinstance(value.get("init_args"), dict):
        try:
            known = {name: one.annotation for name, one in parameters(value["class_path"]).items()}
        except (ConfigError, AttributeError, TypeError, ValueError):
            return value  # the parser says what is wrong with the class
        value["init_args"] = _without_nulls(value["init_args"], known)
    return value


def _without_nulls(arguments: dict[Any, Any], annotations: dict[str, Any]) -> dict[Any, Any]:
    """Leave out null for a part that cannot be null, among the arguments and in the parts that are dataclasses."""
    kept = {}
    for name, value in arguments.items():
        annotation = annotations.get(name)
        if value is None and not (accepts_none(annotation) if name in annotations else name not in PARTS):
            continue
        part = dataclass_of(annotation) if isinstance(value, dict) else None
        if part is not None and "class_path" not in value:
            value = _without_nulls(value, {field: one.annotation for field, one in parameters(part).items()})
        kept[name] = value
    return kept
