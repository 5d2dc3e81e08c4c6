"""Facts of a run for MLflow's pages, beside its curves: parameters common to all methods, tags, data sets."""

import subprocess
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import MLFlowLogger

from support.files import atomic_write_text, fingerprint
from support.seeding import run_seed
from tracking.run_records import TRAINING, Facts, record
from tracking.runs import mlflow_runs, run_folder

#: number of rows that a data set's digest covers; the digest also covers the total number of rows
DIGESTED = 10_000
#: maximum number of bytes of the uncommitted changes that are kept
LARGEST_DIFF = 1024**2


class RunFacts(L.Callback):
    """At the start of a fit, set the parameters, tags and inputs by which MLflow's pages list and compare runs.

    Other loggers get the parameters only.

    Parameters: method, model, data, seed, parts of the objective and sizes, under the same names in every method. Tags:
    method, paper, model, data, seed, git_commit, and resumed_from where a checkpoint was given. Inputs: the training
    and validation rows, as name, digest, columns and count. Uncommitted changes of tracked files are kept as
    code/uncommitted_<digest>.diff in the run folder and in MLflow, at most 1 MiB of them.

    Args:
        method: name of the method; the module's class if None. main.py passes the names of the configuration files.
        paper: arXiv numbers, if any.
    """

    def __init__(self, method: str | None = None, paper: str | None = None) -> None:
        self.method, self.paper = method, paper

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for logger in trainer.loggers:
            if not isinstance(logger, MLFlowLogger):
                logger.log_hyperparams(parameters(trainer, pl_module, self.method))
        changes: Path | None = None
        if trainer.is_global_zero and (diff := uncommitted()):
            changes = run_folder(trainer) / "code" / f"uncommitted_{fingerprint([diff])[:8]}.diff"
            atomic_write_text(changes, diff)
        for client, run in mlflow_runs(trainer):
            record(client, run, "experiment", {"kind": TRAINING})
            if changes is not None:
                client.log_artifact(run, str(changes), "code")
            params, data = parameters(trainer, pl_module, self.method), getattr(trainer, "datamodule", None)
            known = client.get_run(run).data
            for name, value in params.items():
                if name not in known.params:
                    client.log_param(run, name, value)
            tags: dict[str, str | None] = {name: params.get(name) for name in ("method", "model", "data", "seed")}
            tags |= {
                "paper": self.paper,
                "git_commit": commit(),
                "resumed_from": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            }
            for name, tag in tags.items():
                if tag and (name not in known.tags or name == "resumed_from"):
                    client.set_tag(run, name, tag)
            for split, context in (("train", "training"), ("val", "validation")) if hasattr(data, "rows") else ():
                record(client, run, "dataset", described(data, split, context))


def parameters(trainer: L.Trainer, module: Any, method: str | None) -> dict[str, str]:
    """Parameters of a run, short name to value; those that a method does not have are left out."""
    data, policy = getattr(trainer, "datamodule", None), getattr(module, "policy_params", None)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    values: dict[str, Any] = {
        "method": method or type(module).__name__,
        "model": Path(policy.model).name if policy else None,
        "data": type(data).__name__ if data is not None else None,
        "seed": run_seed(),
        "optimizer": type(optimizer).__name__ if optimizer is not None else None,
        "lr": optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"])
        if optimizer is not None
        else None,
        "lora_r": policy.lora.r if policy and policy.lora else 0,
        "trained_weights": sum(p.numel() for p in trained),
        "max_steps": trainer.max_steps,
        "processes": trainer.world_size,
        "precision": getattr(module, "precision", trainer.precision),
        "compute_probe": getattr(getattr(module, "policy", None), "compute_probe", None),
    }
    for name in ("advantage", "policy_loss", "aggregation", "engine"):
        values[name] = type(getattr(module, name)).__name__ if hasattr(module, name) else None
    if hasattr(module, "rewards"):
        values["rewards"] = ", ".join(
            f"{reward.weight:g} {reward.name}" if reward.weight != 1 else reward.name for reward in module.rewards
        )
    if hasattr(module, "sampling"):
        values |= {
            "max_new_tokens": module.sampling.max_new_tokens,
            "temperature": module.sampling.temperature,
        }
    if hasattr(module, "kl"):  # a module without rollouts may sample too, as in distillation
        values |= {
            "prompts": module.batch.prompts_per_rollout,
            "group_size": module.batch.group_size,
            "updates": module.batch.updates,
            "kl": module.kl.coefficient,
        }
    return {name: str(value)[:500] for name, value in values.items() if value is not None}


def described(data: Any, split: str, context: str) -> Facts:
    """A split as an MLflow data set: its source and a digest to recognise it, not its contents."""
    rows = data.rows(split)
    simple = {
        name: value
        for name, value in sorted(vars(data).items())
        if not name.startswith("_") and isinstance(value, (str, int, float, list))
    }
    return {
        "name": f"{type(data).__name__}, {split}",
        "digest": fingerprint([len(rows), *rows[:DIGESTED]])[:16],
        "context": context,
        "source": {"class": f"{type(data).__module__}.{type(data).__qualname__}", **simple},
        "columns": {str(name): _kind(value) for name, value in rows[0].items()} if rows else {},
        "rows": len(rows),
    }


def _kind(value: Any) -> str:
    """MLflow's name for a column's type."""
    return {bool: "boolean", int: "long", float: "double", str: "string"}.get(type(value), "string")


def commit() -> str | None:
    """The commit of the working directory, followed by + if tracked files have changed; None outside a repository."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+" if changed.strip() else head


def uncommitted(limit: int = LARGEST_DIFF) -> str:
    """The changes of tracked files since the commit of the working directory, as a patch; "" without any.

    Files that git does not track are left out, and of binary files only the names are kept. A patch of more than
    `limit` bytes is cut off at the end of a line, and its last line says so.
    """
    command = ["git", "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD"]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            patch = process.stdout.read(limit + 1)
            if len(patch) > limit:
                process.kill()
        if process.returncode and len(patch) <= limit:  # no repository, or one without a commit
            return ""
    except OSError:
        return ""
    text = patch[:limit].decode(errors="replace")
    if len(patch) > limit:
        text = f"{text.rpartition(chr(10))[0]}\n# cut off after {limit} bytes\n"
    return text
