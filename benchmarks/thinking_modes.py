"""Compare AdaptThink and AutoThink with GRPO, with and without a length penalty, from the same initial policy.

    python benchmarks/thinking_modes.py                      # run arms without a result, print tables, draw plots
    python benchmarks/thinking_modes.py --only '[adapt]'     # these arms only
    python benchmarks/thinking_modes.py --run false          # the report only

Every arm is a configuration with changes and runs through main.py. Its curves, and a final evaluation with eight
samples per problem, are stored in runs/thinking/<arm>_<seed>.json, so that an interrupted benchmark continues where it
stopped. A run takes about five minutes on one core. The plots are docs/plots/adapt_think.png, auto_think.png and
thinking_front.png.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table  # noqa: E402
from benchmarks.experiments import Results, finished, fit, result_path, validate  # noqa: E402
from benchmarks.figures import Curve, arm_styles, draw_seeds, panels  # noqa: E402
from policies import Policy, PolicyParams  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

RESULTS = Path("runs/thinking")
TITLES = {
    "adapt": "AdaptThink answers easy sums at once: half the tokens at a higher pass@1",
    "auto": "AutoThink's three stages: both modes alive, then accuracy, then shorter",
}
LEVELS = [f"addition-{n}" for n in range(1, 6)]
EASY, HARD = LEVELS[:2], LEVELS[3:]
DATA = ["--data.levels=[1,1,2,2,3,4,5]", "--data.train_size=1024", "--data.val_size=350"]
GRPO = ["--config=configs/grpo.yaml", "--model.policy.model=assets/tiny_switcher", *DATA, "--trainer.max_steps=120"]
PENALTY = (
    '--model.rewards=[{"class_path":"rewards.ExactAnswer"},'
    '{"class_path":"rewards.LengthPenalty","init_args":{"scale":72,"weight":%s}}]'
)
ADAPT, AUTO = ["--config=configs/adapt_think.yaml"], ["--config=configs/auto_think.yaml"]
#: AutoThink without its balance of modes: the plain reward table from the first rollout on, for the length of stage 1
NAIVE = [
    *AUTO,
    "--model.stage=2",
    "--trainer.max_steps=40",
    '--trainer.callbacks=[{"class_path": "callbacks.RolloutCheckpoint"}]',
]
#: mostly easy sums, where answering at once succeeds so often that the reward table alone may unlearn thinking; with
#: and without stage 1's balance
EASY_MIX = ["--data.levels=[1,1,1,1,2,2,2,2,2,4]", "--trainer.max_steps=40"]
#: the same initial policy with the ellipsis in its chat template, so that a method without modes sees it
ELLIPSIS_START = "runs/thinking/ellipsis_start"
#: number of rollouts at which the sweep and the ablation are compared
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
    "grpo_length": ("fit", [*GRPO, PENALTY % 0.2], [0]),
    "grpo_length_0.05": ("fit", [*GRPO, PENALTY % 0.05], [0]),
    "adapt_unforced": ("fit", [*ADAPT, "--model.forcing.share=0.0", SHORTER], [0]),
    "grpo_ellipsis": ("fit", [*GRPO, f"--model.policy.model={ELLIPSIS_START}", SHORTER], [0]),
    "delta_0": ("fit", [*ADAPT, "--model.delta=0.0", SHORTER], [0]),
    "delta_0.2": ("fit", [*ADAPT, "--model.delta=0.2", SHORTER], [0]),
    "delta_0.5": ("fit", [*ADAPT, "--model.delta=0.5", SHORTER], [0]),
}


def make_ellipsis_start() -> None:
    """Save tiny_switcher in a separate folder with a chat template that opens <think> followed by an ellipsis."""
    policy = Policy(PolicyParams("assets/tiny_switcher"))
    policy.tokenizer.chat_template = policy.tokenizer.chat_template.replace("<think>' }}", "<think>\\n...\\n' }}")
    policy.save(ELLIPSIS_START)


def run_arm(arm: str, seed: int) -> None:
    """Train and evaluate one arm, and store its result."""
    stage, arm_arguments, _ = ARMS[arm]
    arguments = [*arm_arguments, f"--seed_everything={seed}"]
    result: dict[str, Any] = {}
    if stage == "fit":
        cli, result = fit(RESULTS, f"{arm} {seed}", arguments)
        newest = sorted((RESULTS / str(cli.trainer.logger.version) / "checkpoints").glob("*.ckpt"))[-1]
        arguments.append(f"--ckpt_path={newest}")
    fit_only = ("--trainer.max_steps", "--trainer.val_check_interval")
    arguments = [argument for argument in arguments if not argument.startswith(fit_only)]
    cli = validate(RESULTS, [*arguments, "--model.evaluation.samples=8"])
    result["final"] = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    atomic_write_text(result_path(RESULTS, arm, seed), json.dumps(result))


# ---- the report ------------------------------------------------------------------------------------------------------


def rate(final: dict[str, float], levels: list[str], name: str = "no_thinking_rate") -> float:
    """Mean of a rate over those of the levels that the arm's problems have; NaN if it has no level of theirs."""
    rates = [final[f"val/{name}/{level}"] for level in levels if f"val/{name}/{level}" in final]
    return sum(rates) / len(rates) if rates else float("nan")


def at_once_rates(final: dict[str, float]) -> list[str]:
    """Fractions of answers at once for sums of 1 to 2, 3, and 4 to 5 digits."""
    return [f"{rate(final, levels):.2f}" for levels in (EASY, LEVELS[2:3], HARD)]


AT_ONCE = ["at once: 1-2 digits", "3", "4-5"]


def table(results: Results) -> str:
    """Accuracy, tokens, answers at once and minutes of every run."""
    rows = []
    for (arm, seed), result in results.items():
        final = result["final"]
        # The mostly easy problems differ from those on which the initial policy was measured.
        start = None if "easy" in arm else results.get(("start", seed), {}).get("final")
        change = f"{100 * (final['val/length'] / start['val/length'] - 1):+.0f} %" if start and arm != "start" else ""
        minutes = f"{result['minutes']:.1f}" if "minutes" in result else ""
        measured = [f"{final['val/pass@1']:.3f}", f"{final['val/length']:.1f}", change, *at_once_rates(final), minutes]
        rows.append([arm, str(seed), *measured])
    return markdown_table(["arm", "seed", "pass@1", "tokens", "against the start", *AT_ONCE, "minutes"], rows)


def by_level(final: dict[str, float]) -> str:
    """Thinking rate, accuracy and tokens of one policy by level."""
    rows = []
    for number, level in enumerate(LEVELS, start=1):
        thinks, accuracy, length = (final[f"val/{name}/{level}"] for name in ("thinking_rate", "pass@1", "length"))
        rows.append([str(number), f"{thinks:.2f}", f"{accuracy:.3f}", f"{length:.1f}"])
    return markdown_table(["digits", "thinks", "pass@1", "tokens"], rows)


def at_rollout(result: dict[str, Any], metric: str, rollout: int) -> float:
    """Value of a metric after so many rollouts."""
    values: dict[int, float] = {step + 1: value for step, value in result["curves"][metric]}
    return values[rollout]


def sweep(results: Results, rollout: int = 60) -> str:
    """AdaptThink's trade-off by delta, from the validation after so many rollouts (one sample per problem)."""
    arms = {
        "delta_0": "0",
        "adapt": "0.05",
        "delta_0.2": "0.2",
        "delta_0.5": "0.5",
        "adapt_unforced": "0.05, nothing forced",
    }
    rows = []
    for arm, label in arms.items():
        if (result := results.get((arm, 0))) is not None:
            names = [name for name in result["curves"] if name.startswith("val/no_thinking_rate")]
            rates = at_once_rates({name: at_rollout(result, name, rollout) for name in names})
            length, accuracy = (at_rollout(result, name, rollout) for name in ("val/length", "val/pass1"))
            rows.append([label, *rates, f"{length:.1f}", f"{accuracy:.3f}"])
    return markdown_table(["delta", *AT_ONCE, "tokens", "pass@1"], rows)


def plot_method(results: Results, method: str, others: list[str], lines: list[int], out: str) -> None:
    """Draw accuracy, length and thinking rate of a method over rollouts, and the thinking rate by level.

    Args:
        others: arms beside it.
        lines: rollouts that are marked by vertical lines.
    """
    metrics = {"pass@1": "val/pass1", "tokens per completion": "val/length", "thinking rate": "val/thinking_rate"}
    headings = [*metrics, "thinking rate by number of digits"]
    with panels(headings, TITLES[method]) as (figure, axes):
        for panel, metric in zip(axes, metrics.values(), strict=False):
            for arm, style in arm_styles([method, *others]).items():
                draw_seeds(panel, curves_of(results, arm, metric), arm, style)
        for (level, style), number in zip(arm_styles(LEVELS).items(), range(1, 6), strict=True):
            draw_seeds(axes[3], curves_of(results, method, f"val/thinking_rate/{level}"), f"{number} digits", style)
        for panel in axes:
            panel.set_xlabel("rollouts")
            for line in lines:
                panel.axvline(line, color="#999999", linestyle=":")
        for panel in axes[2:]:
            panel.set_ylim(-0.02, 1.02)
            panel.legend()
        figure.savefig(out, dpi=110)


def curves_of(results: Results, arm: str, metric: str) -> list[Curve]:
    """A metric against rollouts, one curve per seed of an arm."""
    runs = [result["curves"].get(metric, []) for (name, _), result in results.items() if name == arm]
    return [[(step + 1, value) for step, value in points] for points in runs]


def plot_front(results: Results, out: str) -> None:
    """Draw accuracy against tokens of every finished arm."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    names = {
        "start": "start",
        "start_ellipsis": "start, ellipsis",
        "adapt": "AdaptThink",
        "auto": "AutoThink",
        "grpo": "GRPO",
        "grpo_length": "GRPO, length penalty 0.2",
        "grpo_length_0.05": "GRPO, length penalty 0.05",
    }
    for (arm, label), marker in zip(names.items(), "sDo^vxP", strict=True):
        finals = [result["final"] for (name, _), result in results.items() if name == arm]
        points = [(final["val/length"], final["val/pass@1"]) for final in finals]
        if points:
            lengths, accuracies = zip(*points, strict=True)
            panel.scatter(lengths, accuracies, label=label, marker=marker, s=50)
    panel.set_xlabel("mean tokens per completion")
    panel.set_ylabel("pass@1")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.savefig(out, dpi=110)


def main(run: bool = True, only: list[str] | None = None) -> None:
    """Run the arms without a result, then report on all results.

    Args:
        run: whether to train; False reports only.
        only: names of arms; all by default.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    if run:
        make_ellipsis_start()
    for arm, (_, _, seeds) in ARMS.items():
        for seed in seeds if run and (only is None or arm in only) else []:
            if not result_path(RESULTS, arm, seed).is_file():
                print(f"=== {arm}, seed {seed}", flush=True)
                run_arm(arm, seed)
    results = finished(RESULTS, {arm: seeds for arm, (_, _, seeds) in ARMS.items()})
    print(table(results))
    for arm in ("adapt", "auto"):
        if (arm, 0) in results:
            print(f"\n{arm}, seed 0\n\n{by_level(results[arm, 0]['final'])}")
    print(f"\nAfter 60 rollouts, seed 0\n\n{sweep(results)}")
    plot_method(results, "adapt", ["adapt_unforced"], [], "docs/plots/adapt_think.png")
    plot_method(results, "auto", ["auto_naive", "grpo_ellipsis"], [40, 120], "docs/plots/auto_think.png")
    plot_front(results, "docs/plots/thinking_front.png")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
