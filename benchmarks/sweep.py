"""A search over settings with Optuna: every trial is a run of main.py, trials that fall behind are stopped.

    python -m benchmarks.sweep --config '[configs/grpo.yaml]' --space space.yaml --trials 20

`space.yaml` names settings by their keys on the command line:

    model.optimizer.lr: {low: 1.0e-5, high: 1.0e-3, log: true}
    model.batch.updates_per_rollout: {low: 1, high: 4}        # whole numbers
    model.loss.clip_high: [0.2, 0.28, 0.4]

The study is runs/sweep/NAME.db. The same command goes on where it stopped: finished trials count, one that was killed
is repeated. In MLflow the trials are children of one run in the experiment "sweep", with results.csv and importance.png
among its artifacts. Needs the extra `sweep` (Optuna).
"""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import lightning as L
import mlflow
import yaml
from matplotlib.figure import Figure

from benchmarks.common import markdown_table, run_script
from benchmarks.compare.trials import FORKS, fit_in_process
from support.errors import ConfigError
from support.files import atomic_write_text
from support.papers import flags
from tracking.run_records import KIND, PARENT, TRAINING

try:
    import optuna
except ImportError as error:
    raise SystemExit("error: the sweep needs Optuna: pip install -e '.[sweep]'") from error

FOLDER, EXPERIMENT = Path("runs/sweep"), "sweep"


class ReportTrial(L.Callback):
    """Report a metric to Optuna after every validation of the training, and stop the run where the pruner says so.

    Args:
        storage, study, trial: of the trial that this run is.
        metric: name of the metric.
    """

    def __init__(self, storage: str, study: str, trial: int, metric: str) -> None:
        self.storage, self.study, self.trial, self.metric = storage, study, trial, metric

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        if self.metric not in trainer.callback_metrics:
            names = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            raise ConfigError(f"--metric is {self.metric!r}, but the validation logged {names}; choose one of these.")
        trial = optuna.Trial(optuna.load_study(study_name=self.study, storage=self.storage), self.trial)
        step = trainer.global_step
        trial.report(float(trainer.callback_metrics[self.metric]), step)
        if step > 0 and trial.should_prune():
            trial.set_user_attr("pruned", True)
            trainer.should_stop = True


def main(
    config: list[str],
    space: str,
    trials: int = 20,
    name: str = "sweep",
    metric: str = "val/pass@1",
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> None:
    """Make the trials that are missing, then print the best and write the picture.

    Args:
        config: configuration files of the method, as of main.py.
        space: YAML file of the settings to vary.
        trials: number of finished trials, earlier ones of this name included.
        name: name of the study.
        metric: metric of the validation that is maximised.
        seed: seed of all runs, and of the search.
        settings: further settings of all runs, by their keys.
    """
    distributions = read_space(Path(space))
    FOLDER.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{FOLDER / name}.db"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(name, storage, distributions, {"config": config, "metric": metric, "settings": settings or {}})
    client, experiment, parent = _parent(name)
    while (finished := len(done(study))) < trials:
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
        trial = study.ask(distributions)
        values = flags((settings or {}) | trial.params)
        said = ", ".join(f"{key.rpartition('.')[2]} {value:.4g}" if isinstance(value, float) else
                         f"{key.rpartition('.')[2]} {value}" for key, value in trial.params.items())  # fmt: skip
        report = {"storage": storage, "study": name, "trial": trial._trial_id, "metric": metric}
        command = [
            *(f"--config={path}" for path in config), *values, f"--seed_everything={seed}",
            f"--trainer.callbacks+={json.dumps({'class_path': 'benchmarks.sweep.ReportTrial', 'init_args': report})}",
            f"--trainer.logger.init_args.experiment_name={EXPERIMENT}",
            f"--trainer.logger.init_args.run_name=trial {trial.number}",
            f"--trainer.logger.init_args.tags={json.dumps({PARENT: parent, 'sweep.trial': str(trial.number)})}",
        ]  # fmt: skip
        log = FOLDER / f"{name}_{trial.number}.log"
        succeeded = train(command, log)
        outcome = conclude(study, trial.number, succeeded)
        print(f"[{finished + 1}/{trials}] trial {trial.number}: {said}: {outcome}", flush=True)
        if not succeeded:
            raise ConfigError(
                f"trial {trial.number} failed; its output is in {log}. Correct the space or the settings."
            )
    _publish(study, client, parent, metric)


def read_space(path: Path) -> dict[str, Any]:
    """The distributions of the settings, by key.

    Raises:
        ConfigError: for a file that does not exist, or a value that is neither a list nor low and high.
    """
    if not path.is_file():
        raise ConfigError(f"--space is {path}, which does not exist; name a YAML file of settings and their ranges.")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path} must be a mapping of settings to lists or to low and high.")
    return {str(key): _distribution(path, str(key), value) for key, value in content.items()}


def _distribution(path: Path, key: str, value: Any) -> Any:
    try:
        if isinstance(value, list) and len(value) > 1:
            return optuna.distributions.CategoricalDistribution(value)
        if isinstance(value, dict) and {"low", "high"} <= value.keys() <= {"low", "high", "log", "step"}:
            whole = isinstance(value["low"], int) and isinstance(value["high"], int)
            kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
            return kind(**value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {key} is {value!r}: {error}.") from error
    raise ConfigError(
        f"{path}: {key} is {value!r}; write a list of two or more values, or {{low: 1.0e-5, high: 1.0e-3, log: true}} "
        "(YAML takes 1e-5 for a text)."
    )


def open_study(name: str, storage: str, distributions: dict[str, Any], facts: dict[str, Any]) -> Any:
    """The study of this name, new or continued; trials that were running when it was killed are repeated.

    Raises:
        ConfigError: the study was begun with another space or other settings.
    """
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    space = {key: optuna.distributions.distribution_to_json(value) for key, value in sorted(distributions.items())}
    now = json.dumps(facts | {"space": space}, sort_keys=True)
    if study.user_attrs.get("facts", now) != now:
        raise ConfigError(
            f"the study {name!r} was begun with another space, metric or settings, whose trials do not compare with "
            "these. Choose another --name."
        )
    study.set_user_attr("facts", now)
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
    return study


def done(study: Any) -> list[Any]:
    """The finished trials, those that were stopped early among them."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return list(study.get_trials(deepcopy=False, states=states))


def train(command: list[str], log: Path) -> bool:
    """Run `main.py fit` in a new process, with its output in `log`. Returns whether it succeeded."""
    FORKS.set_forkserver_preload(["benchmarks.compare.trials", "main"])
    process = FORKS.Process(target=fit_in_process, args=([*command, f"--trainer.default_root_dir={FOLDER}"], str(log)))
    process.start()
    process.join()
    return process.exitcode == 0


def conclude(study: Any, number: int, succeeded: bool) -> str:
    """Close a trial with the last value that it reported, and say how it ended."""
    trial = study.get_trials(deepcopy=False)[number]
    values = trial.intermediate_values
    if not succeeded or not values:
        study.tell(number, state=optuna.trial.TrialState.FAIL)
        return "FAILED"
    last = values[max(values)]
    if trial.user_attrs.get("pruned"):
        study.tell(number, state=optuna.trial.TrialState.PRUNED)
        return f"{last:.4g}, stopped after step {max(values)}"
    study.tell(number, last)
    return f"{last:.4g}"


def _parent(name: str) -> tuple[Any, str, str]:
    """MLflow's client, the experiment, and the parent run of the study."""
    client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    identity = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, tags={KIND: TRAINING})
    runs = client.search_runs([identity], f"tags.`sweep.study` = '{name}'", max_results=1)
    tags = {"sweep.study": name, "mlflow.runName": f"sweep {name}"}
    return client, identity, runs[0].info.run_id if runs else client.create_run(identity, tags=tags).info.run_id


def importances(study: Any) -> dict[str, float]:
    """The share of each setting in the spread of the results (fANOVA); empty for too few or equal results.

    Trials that were stopped early count with their last value: without them, only good regions would be left.
    """
    finished = [(trial, last) for trial in done(study) if (last := last_value(trial)) is not None]
    if len(finished) < 4 or len({last for _, last in finished}) == 1:
        return {}
    whole = optuna.create_study(direction="maximize")
    for trial, last in finished:
        whole.add_trial(optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=last))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(whole, evaluator=evaluator))


def last_value(trial: Any) -> float | None:
    """The value of the last validation of a trial; None if it had none."""
    values = trial.intermediate_values
    return values[max(values)] if values else None


def picture(study: Any, path: Path, metric: str) -> None:
    """Bars of the importances, and the results against each setting."""
    shares = importances(study)
    keys = list(shares) or sorted({key for trial in done(study) for key in trial.params})
    figure = Figure(figsize=(3.2 * (1 + len(keys)), 3.2), layout="constrained")
    bars, *panels = figure.subplots(1, 1 + len(keys), squeeze=False)[0]
    bars.barh([key.rpartition(".")[2] for key in keys], [shares.get(key, 0.0) for key in keys], color="#2563a8")
    bars.set(title="share in the spread of results", xlim=(0, 1))
    bars.invert_yaxis()
    for key, panel in zip(keys, panels, strict=True):
        for trial in done(study):
            if key in trial.params and (last := last_value(trial)) is not None:
                pruned = trial.state == optuna.trial.TrialState.PRUNED
                value = trial.params[key]
                panel.plot(value if isinstance(value, int | float) else str(value), last,
                           marker="x" if pruned else "o", color="#9aa3ad" if pruned else "#2563a8")  # fmt: skip
        if any(getattr(trial.distributions.get(key), "log", False) for trial in done(study)):
            panel.set_xscale("log")
        panel.set(xlabel=key, ylabel=f"{metric}, last (x: stopped early)")
        panel.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _publish(study: Any, client: Any, parent: str, metric: str) -> None:
    """Print the best trials, and write the picture and the table beside the study and to the parent run."""
    finished = done(study)
    best = sorted((trial for trial in finished if trial.value is not None), key=lambda trial: -trial.value)
    keys = sorted({key for trial in finished for key in trial.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", metric, *keys])
    for trial in finished:
        writer.writerow([trial.number, trial.state.name, trial.value, *(trial.params.get(key) for key in keys)])
    files = FOLDER / f"{study.study_name}_results.csv", FOLDER / f"{study.study_name}_importance.png"
    atomic_write_text(files[0], text.getvalue())
    picture(study, files[1], metric)
    for file in files:
        client.log_artifact(parent, str(file))
    if best:
        client.log_metric(parent, "best", best[0].value)
        for key, value in best[0].params.items():
            client.set_tag(parent, f"best.{key}", str(value))
    client.set_terminated(parent, "FINISHED")
    rows = [[str(t.number), f"{t.value:.4g}", *(str(t.params.get(key)) for key in keys)] for t in best[:5]]
    print(markdown_table(["trial", metric, *keys], rows))
    print(f"{len(finished)} trials, {len(finished) - len(best)} stopped early; the picture is {files[1]}.")


if __name__ == "__main__":
    run_script(main)
