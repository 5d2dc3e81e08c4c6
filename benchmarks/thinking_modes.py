"""When to think: AdaptThink and AutoThink beside GRPO with and without a price on tokens, from the same start.

python benchmarks/thinking_modes.py                      # runs what has no result yet, then prints the tables and draws docs/plots/*.png
python benchmarks/thinking_modes.py --only '[adapt]'     # these arms only
python benchmarks/thinking_modes.py --run false          # the report only

Every arm is a configuration with changes and goes through main.py. Its curves and a final evaluation with eight samples a problem land in
runs/thinking/<arm>_<seed>.json, so that an interrupted benchmark goes on where it stopped. About five minutes a run on one core.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.experiments import curves, finished  # noqa: E402
from main import main as command_line  # noqa: E402
from policies import Policy, PolicyParams  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

RESULTS = Path("runs/thinking")
URI = f"sqlite:///{RESULTS}/mlflow.db"
LEVELS = [f"addition-{n}" for n in range(1, 6)]
EASY, HARD = LEVELS[:2], LEVELS[3:]
DATA = ["--data.levels=[1,1,2,2,3,4,5]", "--data.train_size=1024", "--data.val_size=350"]
GRPO = ["--config=configs/grpo.yaml", "--model.policy.model=assets/tiny_switcher", *DATA, "--trainer.max_steps=120"]
PRICE = '--model.rewards=[{"class_path":"rewards.ExactAnswer"},{"class_path":"rewards.LengthPenalty","init_args":{"scale":72,"weight":%s}}]'
ADAPT, AUTO = ["--config=configs/adapt_think.yaml"], ["--config=configs/auto_think.yaml"]
#: AutoThink without its balance: the plain table from the first rollout on, as long as stage 1 lasts
NAIVE = [
    *AUTO,
    "--model.stage=2",
    "--trainer.max_steps=40",
    '--trainer.callbacks=[{"class_path": "callbacks.RolloutCheckpoint"}]',
]
#: mostly easy sums, where answering at once pays so often that the table alone may forget how to think; with and without stage 1's balance
EASY_MIX = ["--data.levels=[1,1,1,1,2,2,2,2,2,4]", "--trainer.max_steps=40"]
#: the same start with the ellipsis in its chat template, so that a method without modes sees it
ELLIPSIS_START = "runs/thinking/ellipsis_start"
#: where the sweep and the ablation are compared
SHORTER = "--trainer.max_steps=60"
#: arm -> (stage of main.py, arguments, seeds)
ARMS: dict[str, tuple[str, list[str], list[int]]] = {
    "start": ("validate", GRPO[:-1], [0, 1, 2]),
    "start_ellipsis": ("validate", AUTO, [0, 1, 2]),
    "adapt": ("fit", ADAPT, [0, 1, 2]),
    "auto": ("fit", AUTO, [0, 1, 2]),
    "auto_naive": ("fit", NAIVE, [0]),
    "auto_easy": ("fit", [*AUTO, *EASY_MIX], [0]),
    "auto_easy_gamma_0.2": ("fit", [*AUTO, *EASY_MIX, "--model.mode_rewards.gamma=0.2"], [0]),
    "auto_easy_naive": ("fit", [*NAIVE, *EASY_MIX], [0]),
    "grpo": ("fit", GRPO, [0]),
    "grpo_length": ("fit", [*GRPO, PRICE % 0.2], [0]),
    "grpo_length_0.05": ("fit", [*GRPO, PRICE % 0.05], [0]),
    "adapt_unforced": ("fit", [*ADAPT, "--model.forcing.share=0.0", SHORTER], [0]),
    "grpo_ellipsis": ("fit", [*GRPO, f"--model.policy.model={ELLIPSIS_START}", SHORTER], [0]),
    "delta_0": ("fit", [*ADAPT, "--model.delta=0.0", SHORTER], [0]),
    "delta_0.2": ("fit", [*ADAPT, "--model.delta=0.2", SHORTER], [0]),
    "delta_0.5": ("fit", [*ADAPT, "--model.delta=0.5", SHORTER], [0]),
}


def make_ellipsis_start() -> None:
    """tiny_switcher in a folder of its own, whose chat template opens <think> with an ellipsis behind it."""
    policy = Policy(PolicyParams("assets/tiny_switcher"))
    policy.tokenizer.chat_template = policy.tokenizer.chat_template.replace("<think>' }}", "<think>\\n...\\n' }}")
    policy.save(ELLIPSIS_START)


def run_arm(arm: str, seed: int) -> None:
    stage, arguments, _ = ARMS[arm]
    given = [*arguments, f"--seed_everything={seed}"]
    found: dict[str, Any] = {}
    started = time.perf_counter()
    if stage == "fit":
        logger = ["--trainer.logger.init_args.tracking_uri=" + URI, f"--trainer.logger.init_args.run_name={arm} {seed}"]
        cli = command_line(["fit", *given, *logger, f"--trainer.default_root_dir={RESULTS}"])
        found = {"minutes": (time.perf_counter() - started) / 60, "curves": curves(URI, f"{arm} {seed}")}
        newest = sorted((RESULTS / str(cli.trainer.logger.version) / "checkpoints").glob("*.ckpt"))[-1]  # type: ignore[union-attr]
        given.append(f"--ckpt_path={newest}")
    fit_only = ("--trainer.max_steps", "--trainer.val_check_interval")
    given = [argument for argument in given if not argument.startswith(fit_only)]
    cli = command_line(
        [
            "validate",
            *given,
            "--model.evaluation.samples=8",
            "--trainer.logger=false",
            f"--trainer.default_root_dir={RESULTS}",
        ]
    )
    found["final"] = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    atomic_write_text(RESULTS / f"{arm}_{seed}.json", json.dumps(found))


# ---- the report ---------------------------------------------------------------------------------------------------------------


def rate(final: dict[str, float], levels: list[str], name: str = "no_thinking_rate") -> float:
    """Mean over those of the levels that the arm's problems have; NaN if none."""
    found = [final[f"val/{name}/{level}"] for level in levels if f"val/{name}/{level}" in final]
    return sum(found) / len(found) if found else float("nan")


def table(found: dict[tuple[str, int], dict[str, Any]]) -> str:
    lines = [
        "| arm | seed | pass@1 | tokens | against the start | at once: 1-2 digits | 3 | 4-5 | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (arm, seed), result in found.items():
        final = result["final"]
        # The mostly easy problems are others than the start was measured on.
        start = None if "easy" in arm else found.get(("start", seed), {}).get("final")
        change = f"{100 * (final['val/length'] / start['val/length'] - 1):+.0f} %" if start and arm != "start" else ""
        shares = [rate(final, levels) for levels in (EASY, LEVELS[2:3], HARD)]
        minutes = f"{result['minutes']:.1f}" if "minutes" in result else ""
        cells = [
            arm,
            str(seed),
            f"{final['val/pass@1']:.3f}",
            f"{final['val/length']:.1f}",
            change,
            *(f"{x:.2f}" for x in shares),
            minutes,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_level(final: dict[str, float]) -> str:
    """Thinking rate, accuracy and tokens of one policy, level by level."""
    lines = ["| digits | thinks | pass@1 | tokens |", "|---|---|---|---|"]
    for number, level in enumerate(LEVELS, start=1):
        values = (final[f"val/{name}/{level}"] for name in ("thinking_rate", "pass@1", "length"))
        lines.append("| {} | {:.2f} | {:.3f} | {:.1f} |".format(number, *values))
    return "\n".join(lines)


def at_rollout(result: dict[str, Any], metric: str, rollout: int) -> float:
    return dict((step + 1, value) for step, value in result["curves"][metric])[rollout]


def sweep(found: dict[tuple[str, int], dict[str, Any]], rollout: int = 60) -> str:
    """AdaptThink's trade-off by delta, from the validation after this many rollouts (one sample a problem)."""
    arms = {
        "delta_0": "0",
        "adapt": "0.05",
        "delta_0.2": "0.2",
        "delta_0.5": "0.5",
        "adapt_unforced": "0.05, nothing forced",
    }
    lines = ["| delta | at once: 1-2 digits | 3 | 4-5 | tokens | pass@1 |", "|---|---|---|---|---|---|"]
    for arm, label in arms.items():
        if (result := found.get((arm, 0))) is not None:
            final = {
                name: at_rollout(result, name, rollout)
                for name in result["curves"]
                if name.startswith("val/no_thinking_rate")
            }
            shares = [rate(final, levels) for levels in (EASY, LEVELS[2:3], HARD)]
            tokens, right = (at_rollout(result, name, rollout) for name in ("val/length", "val/pass1"))
            lines.append(f"| {label} | {' | '.join(f'{x:.2f}' for x in shares)} | {tokens:.1f} | {right:.3f} |")
    return "\n".join(lines)


def draw(panel: Any, result: dict[str, Any], metric: str, label: str, **style: Any) -> None:
    if points := result["curves"].get(metric):
        panel.plot(*zip(*[(step + 1, value) for step, value in points], strict=True), label=label, **style)


def plot_method(
    found: dict[tuple[str, int], dict[str, Any]], method: str, others: list[str], lines: list[int], out: str
) -> None:
    """Curves of a method: accuracy, length and thinking rate over rollouts, by level on the right."""
    figure = Figure(figsize=(16, 3.4), layout="constrained")
    panels = figure.subplots(1, 4)
    names = ("val/pass1", "val/length", "val/thinking_rate")
    for panel, metric in zip(panels, names, strict=False):
        for (arm, seed), result in found.items():
            if arm == method or arm in others:
                draw(
                    panel,
                    result,
                    metric,
                    f"{arm}, seed {seed}",
                    linewidth=1.2,
                    linestyle="-" if arm == method else "--",
                )
        panel.set_ylabel(metric.replace("pass1", "pass@1"))
    for number, level in enumerate(LEVELS, start=1):
        if (method, 0) in found:
            draw(
                panels[3], found[method, 0], f"val/thinking_rate/{level}", f"{number} digits", marker="o", markersize=3
            )
    panels[3].set_ylabel("val/thinking_rate by level, seed 0")
    for panel in panels:
        panel.set_xlabel("rollouts")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
        for line in lines:
            panel.axvline(line, color="#999999", linestyle=":")
    for panel in (panels[2], panels[3]):
        panel.set_ylim(-0.02, 1.02)
    figure.savefig(out, dpi=100)


def plot_front(found: dict[tuple[str, int], dict[str, Any]], out: str) -> None:
    """Accuracy against tokens of every finished arm."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    names = {
        "start": "start",
        "start_ellipsis": "start, ellipsis",
        "adapt": "AdaptThink",
        "auto": "AutoThink",
        "grpo": "GRPO",
        "grpo_length": "GRPO, price 0.2",
        "grpo_length_0.05": "GRPO, price 0.05",
    }
    for (arm, label), marker in zip(names.items(), "sDo^vxP", strict=True):
        points = [(r["final"]["val/length"], r["final"]["val/pass@1"]) for (name, _), r in found.items() if name == arm]
        if points:
            panel.scatter(*zip(*points, strict=True), label=label, marker=marker, s=50)
    panel.set_xlabel("mean tokens of a completion")
    panel.set_ylabel("pass@1")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.savefig(out, dpi=110)


def main(run: bool = True, only: list[str] | None = None) -> None:
    """Run the arms that have no result, then report on all that have.

    Args:
        run: False reports only. only: names of arms.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    if run:
        make_ellipsis_start()
    for arm, (_, _, seeds) in ARMS.items():
        for seed in seeds if run and (only is None or arm in only) else []:
            if not (RESULTS / f"{arm}_{seed}.json").is_file():
                print(f"=== {arm}, seed {seed}", flush=True)
                run_arm(arm, seed)
    found = finished(RESULTS, {arm: seeds for arm, (_, _, seeds) in ARMS.items()})
    print(table(found))
    for arm in ("adapt", "auto"):
        if (arm, 0) in found:
            print(f"\n{arm}, seed 0\n\n{by_level(found[arm, 0]['final'])}")
    print(f"\nAfter 60 rollouts, seed 0\n\n{sweep(found)}")
    plot_method(found, "adapt", ["adapt_unforced"], [], "docs/plots/adapt_think.png")
    plot_method(found, "auto", ["auto_naive", "grpo_ellipsis"], [40, 120], "docs/plots/auto_think.png")
    plot_front(found, "docs/plots/thinking_front.png")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
