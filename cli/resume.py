"""The checkpoint that --ckpt_path names: found, whole, and readable as plain data."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cli.parameters import imported
from cli.saved_config import flattened
from cli.yaml_files import read_yaml
from support.checkpoints import damage, newest_first, unreadable
from support.errors import ConfigError
from support.locks import FolderLock
from support.moved import present_path
from tracking.runs import in_order


def runs_of(root: Path, method: str | None = None) -> list[Path]:
    """Folders of the runs of a method, or of all methods, the one that was started last at the beginning.

    A run whose configuration cannot be read is passed over with a line.

    Args:
        root: the folder of all runs. method: class path of the module.
    """
    runs = []
    for config in root.glob("*/config_fit.yaml"):
        try:
            class_path = str(((read_yaml(config) or {}).get("model") or {}).get("class_path"))
        except (ConfigError, OSError, AttributeError) as error:
            print(f"--ckpt_path last: {config} cannot be read ({type(error).__name__}), so its run is passed over.")
            continue
        if method is None or present_path(class_path) == present_path(method):
            runs.append(config.parent)
    return in_order(runs)[::-1]


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of method and data by dotted name.

    Args:
        config: a run's configuration, as a dict or a Namespace.
    """
    whole = config.as_dict() if isinstance(config, Namespace) else config or {}
    return flattened({part: whole.get(part) for part in ("model", "data")})


def changed_settings(saved: Any, config: Any) -> dict[str, tuple[Any, Any]]:
    """(value of a saved run, value now) of the settings of method and data that differ, by dotted name.

    A setting that only one of them has belongs to another version or to a part that the other lacks; of these, only the
    classes of parts are named, with None for the lacking one.
    """
    old, new = settings_of(saved), settings_of(config)
    names = [name for name in new | old if name.endswith("class_path") or (name in new and name in old)]
    return {name: (old.get(name), new.get(name)) for name in names if _plain(old.get(name)) != _plain(new.get(name))}


def _plain(value: Any) -> str:
    return present_path(value) if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)


def _most_alike(runs: list[Path], config: Namespace) -> Path:
    """The newest run whose method has the same parts (loss, advantage, rewards, ...); without one, the newest run.

    Args:
        runs: of one method, newest first.
    """
    for folder in runs:
        changed = changed_settings(read_yaml(folder / "config_fit.yaml"), config)
        if not any(name.startswith("model.") and name.endswith("class_path") for name in changed):
            return folder
    return runs[0]


def _say_what_changed(folder: Path, config: Namespace, shown: int = 6) -> None:
    """Print the settings in which a run that goes on differs from its saved configuration."""
    changed = changed_settings(read_yaml(folder / "config_fit.yaml"), config)
    if changed:
        named = "; ".join(f"{name} is {new}, was {old}" for name, (old, new) in list(changed.items())[:shown])
        more = f"; and {len(changed) - shown} more" if len(changed) > shown else ""
        print(f"--ckpt_path last: the run goes on with other settings than it began with: {named}{more}.")


def _method(config: Namespace) -> str | None:
    """Class path of the module whose runs a command continues; None for a module that measures any method's policy."""
    measures = getattr(imported(config.model.class_path), "measures_any_policy", False)
    return None if measures else str(config.model.class_path)


def last_checkpoint(root: Path, method: str | None, config: Namespace | None = None) -> Path | None:
    """The undamaged checkpoint of most rollouts of the newest run of a method; None, with a message, without any.

    Of several runs, the newest one counts whose method has the same parts as now.

    A run that was itself resumed and has saved nothing yet counts as the run that it goes on from: loggers other than
    MLflow's give a resumed run a folder of its own.

    Args:
        root: the folder of all runs. method: class path of the module; None for runs of any method.
        config: of the command; without it the newest run of the method counts.
    """
    runs, name = runs_of(root, method), method or "any method"
    if not runs:
        print(f"--ckpt_path last: {name} has no run under {root} yet, so training starts from the beginning.")
        return None
    newest = runs[0] if config is None else _most_alike(runs, config)
    folder: Path | None = newest
    visited: set[Path] = set()
    while folder is not None and folder not in visited:
        visited.add(folder)
        for path in newest_first(folder / "checkpoints"):
            fault = damage(path)
            if fault is None:
                print(f"Last checkpoint of {name}: {path}")
                return path
            print(f"--ckpt_path last: {path} is damaged ({fault}); trying the one before it.")
        folder = _continued_run(folder)
    print(
        f"--ckpt_path last: the newest run of {name}, {newest}, has no undamaged checkpoint, "
        "so training starts from the beginning."
    )
    return None


def _continued_run(folder: Path) -> Path | None:
    """The folder of the run that a run was resumed from; None if it was not resumed.

    Raises:
        ConfigError: it was resumed from a checkpoint outside a run's folder.
    """
    saved = read_yaml(folder / "config_fit.yaml") or {}
    if not saved.get("ckpt_path"):
        return None
    checkpoint = Path(saved["ckpt_path"])
    before = checkpoint.parent.parent
    if checkpoint.parent.name == "checkpoints" and (before / "config_fit.yaml").is_file():
        return before
    raise ConfigError(
        f"--ckpt_path last: the newest run, {folder}, has saved no checkpoint of its own, and it began from "
        f"{checkpoint}, which is in no run's folder. Continue with --ckpt_path {checkpoint}."
    )


def _root_of_runs(config: Namespace) -> Path:
    """The folder of the runs of this command's logger; loggers other than MLflow's have a folder of their own."""
    root, logger = Path(config.trainer.default_root_dir), config.trainer.logger
    logger = logger[0] if isinstance(logger, list) and logger else logger
    if logger is True:
        of_logger = root / "lightning_logs"
    elif isinstance(logger, Namespace) and (logger.get("init_args") or {}).get("save_dir"):
        of_logger = Path(logger.init_args.save_dir) / str(logger.init_args.get("name") or "")
    else:
        return root
    return of_logger if runs_of(of_logger, _method(config)) else root


def find_checkpoint(config: Namespace, command: str) -> None:
    """Replace `last` in `config.ckpt_path` by the path of the checkpoint, and continue its run under `fit`.

    Args:
        config: of the command, with `ckpt_path`, `trainer` and `model`. command: fit, validate, test or predict.

    Raises:
        ConfigError: for a checkpoint that is missing or damaged, for `last` without a run when the command is not fit,
            or where another process is writing its run.
    """
    if config.get("ckpt_path") != "last":
        if config.get("ckpt_path"):
            _refuse_damaged(Path(config.ckpt_path))
        return
    checkpoint = last_checkpoint(_root_of_runs(config), _method(config), config)
    config.ckpt_path = None if checkpoint is None else str(checkpoint)
    if checkpoint is None and command != "fit":
        raise ConfigError(
            f"--ckpt_path last: there is no checkpoint of {_method(config) or 'any method'} to {command} with. Train "
            f"first (python main.py fit ...), or {command} the untrained model by leaving out --ckpt_path."
        )
    if checkpoint is not None and command == "fit":
        _say_what_changed(checkpoint.parents[1], config)
    if checkpoint is not None and command == "fit" and getattr(rank_zero_only, "rank", 0) == 0:
        FolderLock(checkpoint.parent).check()
    logger: Any = config.trainer.logger
    if checkpoint is not None and command == "fit" and isinstance(logger, Namespace) and "run_id" in logger.init_args:
        # The same run goes on: one folder, one set of curves. Without a logger tracking.runs.continue_from does this.
        logger.init_args.run_id = checkpoint.parents[1].name
    elif checkpoint is not None and command == "fit" and _is_wandb(logger):
        logger.init_args.id = checkpoint.parents[1].name


def _is_wandb(logger: Any) -> bool:
    return isinstance(logger, Namespace) and str(logger.get("class_path", "")).endswith("WandbLogger")


def _refuse_damaged(path: Path) -> None:
    fault = damage(path)
    if fault is None:
        return
    others = sorted(str(other) for other in path.parent.glob("*.ckpt") if other != path)
    raise ConfigError(
        f"the checkpoint {path} cannot be used: {fault}. The other checkpoints in its folder are: "
        f"{', '.join(others) or 'none'}. Name one that is whole with --ckpt_path."
    )


def refuse_unreadable(config: Namespace) -> None:
    """Refuse a checkpoint that holds more than plain data, unless the command line says `--weights_only false`.

    Raises:
        ConfigError: for such a checkpoint. Nothing that it holds has been executed.
    """
    if not config.get("ckpt_path") or not config.weights_only:
        return
    fault = unreadable(Path(config.ckpt_path))
    if fault is not None:
        raise ConfigError(
            f"the checkpoint {config.ckpt_path} cannot be read as plain data, and nothing in it was executed: {fault}. "
            "Name a checkpoint that this project wrote with --ckpt_path; a file that you trust may run its own code "
            "with --weights_only false."
        )
