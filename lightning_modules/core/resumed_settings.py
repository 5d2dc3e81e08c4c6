"""Settings of the optimiser and the learning-rate scheduler of a resumed run: this run's, not the checkpoint's.

A checkpoint restores the state of both as they were, including learning rate, weight decay and length of the schedule.
What this run sets differently is applied afterwards. What both runs set alike keeps its present value, which a callback
may have changed.
"""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from support.code_identity import is_library
from support.errors import ConfigError
from support.identity import identity_fingerprint

#: keys of a parameter group that are not settings
NOT_SETTINGS = {"params", "param_names", "initial_lr", "swa_lr"}
Settings = dict[str, Any]


def optimizer_settings(optimizer: Optimizer) -> Settings:
    """The settings as constructed, before a scheduler changes them, as plain data for a checkpoint."""
    groups = [{key: group[key] for key in group if key not in NOT_SETTINGS} for group in optimizer.param_groups]
    return {"optimizer": type(optimizer).__name__, "groups": groups, "scheduler": None}


def schedule(scheduler: Any) -> str:
    """A text that two schedulers share if their settings are equal; for one that has just been constructed.

    A scheduler's own state leaves out functions, and the arguments of partial ones, which decide the learning rate.
    """
    settings = _settings(scheduler)
    state = repr(scheduler.state_dict()) if _is_plain(settings) else identity_fingerprint(settings)
    return f"{type(scheduler).__name__} {state}"


def _settings(scheduler: Any) -> dict[str, Any]:
    """Everything that a scheduler holds but the optimiser; schedulers inside it as their settings."""
    held = {name: value for name, value in vars(scheduler).items() if not isinstance(value, (Optimizer, weakref.ref))}
    for name, value in held.items():
        if isinstance(value, (list, tuple)) and any(isinstance(part, LRScheduler) for part in value):
            held[name] = [[type(part).__name__, _settings(part)] for part in value]
    kind = type(scheduler)
    return held if is_library(kind.__module__) else held | {"": kind}


def _is_plain(value: Any) -> bool:
    """Whether a value's text says all that it is: numbers, texts, and containers of them."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def refuse_other_optimizer(saved: Settings, current: Settings) -> None:
    """Raise ConfigError if the checkpoint holds the state of another optimiser class or other parameter groups."""
    if saved["optimizer"] != current["optimizer"] or len(saved["groups"]) != len(current["groups"]):
        raise ConfigError(
            f"the checkpoint holds the state of {saved['optimizer']} with {len(saved['groups'])} parameter group(s), "
            f"which this run's {current['optimizer']} with {len(current['groups'])} cannot continue from. Set "
            "model.optimizer as in the checkpoint's run; to go on with another optimiser, export the weights with "
            "callbacks.ExportPolicy and set model.policy.model to the exported folder."
        )


def apply_changes(
    saved: Settings,
    current: Settings,
    optimizer: Optimizer,
    make_scheduler: Callable[[Optimizer], Any] | None,
    steps: int,
) -> tuple[Any, list[str]]:
    """Apply the settings in which this run differs from the checkpoint's to the restored optimiser.

    Args:
        saved, current: of the checkpoint's run and of this one, from `optimizer_settings` with `scheduler` from
            `schedule`.
        optimizer: with the restored state; its parameter groups are changed.
        make_scheduler: constructs this run's scheduler; None without one.
        steps: number of steps of the scheduler before the checkpoint.

    Returns:
        (a scheduler at its place after `steps` steps if the schedule changed, else None; what changed, for people).
    """
    changes: list[str] = []
    for group, before, now in zip(optimizer.param_groups, saved["groups"], current["groups"], strict=True):
        for key in now:
            if before.get(key) != now[key]:
                group[key] = now[key]
                changes.append(f"{key} {now[key]} instead of {before.get(key)}")
    if saved["scheduler"] == current["scheduler"]:
        return None, list(dict.fromkeys(changes))
    names = [str(one["scheduler"]).split(" ")[0] for one in (current, saved)]
    changes.append(f"the schedule of {names[0]}" + (f" instead of {names[1]}" if names[0] != names[1] else ""))
    for group, now in zip(optimizer.param_groups, current["groups"], strict=True):
        group.update(now)
        group.pop("initial_lr", None)
    scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # steps of a scheduler without steps of the optimiser
        for _ in range(steps):
            if scheduler is not None:
                scheduler.step()
    return scheduler, list(dict.fromkeys(changes))
