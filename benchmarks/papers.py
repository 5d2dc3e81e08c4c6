"""The effect of every paper of the family beside plain GRPO: same start, prompts and rollouts, and at equal numbers of generated tokens.

python benchmarks/papers.py                        # runs what has no result yet, then writes the table into docs/papers.md and draws docs/plots/papers/*.png
python benchmarks/papers.py --only laser           # one paper
python benchmarks/papers.py --run false            # the report only

Every arm goes through main.py; its curves land in runs/papers/<paper>_<arm>_<seed>.json, so that an interrupted benchmark goes on where it stopped.
"""

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from jsonargparse import auto_cli
from matplotlib.figure import Figure
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.experiments import curves  # noqa: E402
from main import main as command_line  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

RESULTS = Path("runs/papers")
URI = f"sqlite:///{RESULTS}/mlflow.db"
PAGE, BEGIN, END = Path("docs/papers.md"), "<!-- table: begin -->", "<!-- table: end -->"
SEEDS = (0, 1, 2)
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Paper:
    """One row of the family.

    Args:
        config: the paper's. rollouts: of every arm.
        arms: arm -> command-line arguments behind the configuration, or all of them if they begin with --config; one arm is "grpo".
        columns: heading -> metric, shown before the first rollout (val/ only) and at the end.
        expect: what the specification of its miniature asks for.
        validate_every: rollouts; few, so that arms can be compared at equal tokens.
    """

    config: str
    rollouts: int
    arms: dict[str, list[str]]
    columns: dict[str, str]
    expect: str
    validate_every: int = 5


RIGHT, GRADED = "{class_path: rewards.ExactAnswer}", "{class_path: rewards.GradedAnswer}"
NO_ALPHA = RIGHT.replace(
    "Answer}", "Answer, init_args: {weight: 0}}, {class_path: rewards.ShorterBetter, init_args: {beta: 0.02}}"
)
#: rewards of a group are centred, not divided by their deviation, which is small where all are right and then makes length all that counts
NOT_DIVIDED = "--model.advantage={class_path: objectives.GroupNorm, init_args: {scale: none}}"
EVERY = {"val pass@1": "val/pass1", "val length": "val/length"}
NEVER_SKIPS = '{"class_path":"callbacks.GRESO","init_args":{"p_easy":1.0,"p_hard":1.0,"step":0.0}}'
PAPERS: dict[str, Paper] = {
    "shorter_better": Paper(
        config="configs/shorter_better.yaml",
        rollouts=40,
        arms={
            "shorter_better": [],
            "shorter_better, not divided": [NOT_DIVIDED],
            "alpha 0": [f"--model.rewards=[{NO_ALPHA}]"],
            "grpo": [f"--model.rewards=[{RIGHT}]"],
        },
        columns=EVERY | {"optimal length": "train/sol"},
        expect="Length falls by at least 40 % at GRPO's accuracy; without alpha nothing protects accuracy.",
    ),
    "laser": Paper(
        config="configs/laser.yaml",
        rollouts=40,
        arms={
            "laser": [],
            "laser_d": ["--config=configs/laser.yaml", "--config=configs/laser_d.yaml"],
            "grpo": [f"--model.rewards=[{GRADED}]"],
        },
        columns=EVERY | {"right length": "train/length/correct", "target": "train/laser_target"},
        expect="The mean length of right completions falls below the target of 34 tokens, accuracy stays within 2 points of GRPO's.",
    ),
    "hapo": Paper(
        config="configs/hapo.yaml",
        rollouts=40,
        arms={"hapo": [], "hapo, not divided": [NOT_DIVIDED], "grpo": [f"--model.rewards=[{RIGHT}]"]},
        columns=EVERY | {"length / history": "train/hapo_ratio", "history": "train/hapo_history"},
        expect="Length falls from the second epoch on (rollout 9), not in the first.",
    ),
    "open_rs": Paper(
        config="configs/open_rs.yaml",
        rollouts=40,
        arms={
            "open_rs": [],
            "open_rs, not divided": [NOT_DIVIDED],
            "grpo": [f"--model.rewards=[{RIGHT}, {{class_path: rewards.Format}}]"],
        },
        columns=EVERY | {"right length": "train/length/correct"},
        expect="Right completions become shorter than with accuracy and format alone, at similar accuracy.",
    ),
    "greso": Paper(
        config="configs/greso.yaml",
        rollouts=40,
        arms={
            "greso": [],
            "dynamic sampling": [f'--trainer.callbacks=[{{"class_path":"callbacks.DifficultyLedger"}},{NEVER_SKIPS}]'],
            "grpo": ["--model.batch.refill=0", "--trainer.callbacks=[]"],
        },
        columns={
            "val, four digits": "val/pass1/addition-4",
            "completions": "train/greso_completions",
            "no signal": "train/no_signal",
        },
        expect="Completions a rollout fall by 30 % or more against dynamic sampling, at equal accuracy on the sums that can be learned.",
    ),
    "ktae": Paper(
        config="configs/ktae.yaml",
        rollouts=40,
        arms={
            "ktae": [],
            "ktae, clamped": ["--model.advantage.clamp=1.0"],
            "grpo": ["--model.advantage=objectives.GroupNorm"],
        },
        columns={"val pass@1": "val/pass1", "val length": "val/length", "mean abs. key": "train/key_abs"},
        expect="A given accuracy is reached in no more rollouts than with GRPO.",
    ),
    "s_grpo": Paper(
        config="configs/s_grpo.yaml",
        rollouts=40,
        arms={"s_grpo": [], "grpo": ["--model.share=1.0"]},
        columns={"val pass@1": "val/pass1", "tokens with loss": "train/loss_tokens"},
        expect="Better than the start with less than 60 % of the tokens; in the paper full-token GRPO under LoRA does not improve.",
    ),
    "t_spmo": Paper(
        config="configs/t_spmo.yaml",
        rollouts=40,
        arms={
            "t_spmo": [],
            "t_spmo, no replay": ["--model.replay=false"],
            "grpo": [
                "--config=configs/s_grpo.yaml",
                "--model.share=1.0",
                "--model.batch.prompts_per_rollout=4",
                "--model.batch.group_size=16",
            ],
        },
        columns={"val pass@1": "val/pass1", "tokens with loss": "train/loss_tokens", "edges": "train/edges"},
        expect="Better than the start with few per cent of the tokens.",
    ),
    "one_shot": Paper(
        config="configs/one_shot.yaml",
        rollouts=80,
        arms={
            "one_shot": [],
            "one_shot, no entropy bonus": ["--model.shaping.entropy_bonus=0"],
            "grpo": ["--trainer.callbacks=[]"],
        },
        columns={
            "val pass@1": "val/pass1",
            "train": "train/reward/exact_answer",
            "entropy": "train/entropy",
            "live": "train/one_shot_live",
        },
        expect="Held-out accuracy rises by more than 5 points, and still after the one sum is nearly always solved; without the bonus by less.",
    ),
    "saturn": Paper(
        config="configs/saturn.yaml",
        rollouts=100,
        arms={"saturn": [], "grpo": ["--trainer.callbacks=[]"]},
        columns={
            "pass@1 (2,3,3)": "val/pass1/sat-2-3-3",
            "pass@1 (2,3,4)": "val/pass1/sat-2-3-4",
            "pass@1 (2,3,5)": "val/pass1/sat-2-3-5",
            "pass@1 (2,3,6)": "val/pass1/sat-2-3-6",
            "level": "train/curriculum_level",
        },
        expect="The level advances at least twice, at a pass@1 of 20 points above a blind guess's.",
        validate_every=10,  # it decides when the level advances
    ),
    "self_verify": Paper(
        config="configs/self_verify.yaml",
        rollouts=40,
        arms={"self_verify": [], "grpo": ["--model.verification.share=0.0"]},
        columns={
            "val pass@1": "val/pass1",
            "balanced accuracy of verdicts": "val/verify_balanced",
            "right verdicts in training": "train/verify_accuracy",
            "vote": "val/vote",
            "majority": "val/majority",
        },
        expect="Balanced accuracy of verdicts above 0.7, pass@1 not below that of solving alone, the weighted vote not below the majority's.",
        validate_every=10,
    ),
    "still3": Paper(
        config="configs/still3.yaml",
        rollouts=40,
        arms={
            "still3": [],
            "still3 + length": [
                "--model.rewards=[{class_path: rewards.ExactAnswer, init_args: {weight: 2.0}}, {class_path: rewards.LengthBonus, init_args: {scale: 72}}]"
            ],
            "grpo": [
                "--config=configs/grpo.yaml",
                "--model.policy.model=assets/tiny_rambler",
                "--data.levels=[1, 2, 3]",
                "--data.val_size=60",
                "--model.sampling.max_new_tokens=72",
                "--model.evaluation.sampling.max_new_tokens=72",
                "--model.batch.prompts_per_rollout=8",
                "--model.optimizer.init_args.lr=2e-4",
            ],
        },
        columns={
            "val pass@1": "val/pass1",
            "val length": "val/length",
            "val truncated": "val/truncated",
            "completion ratio": "train/completion_ratio",
        },
        expect="With the length reward: longer completions, fewer that end, a lower pass@1 than without it.",
    ),
    "think_json": Paper(
        config="configs/think_json.yaml",
        rollouts=120,
        arms={
            "think_json": [],
            "grpo": [
                "--model.rewards=[{class_path: rewards.JsonPart, init_args: {part: exact, weight: 1.0}},"
                "{class_path: rewards.JsonPart, init_args: {part: parsed}},{class_path: rewards.JsonPart, init_args: {part: match}},"
                "{class_path: rewards.ThinkAnswerFormat, init_args: {weight: 0.0}}]"
            ],
        },
        columns={
            "parse rate": "val/reward/json_parsed",
            "M": "val/reward/json_match",
            "exact": "val/pass1",
            "format": "val/reward/think_answer_format",
        },
        expect="The parse rate rises from below 30 % to above 90 %, and M after it.",
        validate_every=10,
    ),
}


def run_arm(name: str, paper: Paper, arm: str, seed: int) -> None:
    started = time.perf_counter()
    given = paper.arms[arm]
    own = [] if given and given[0].startswith("--config") else [f"--config={paper.config}"]
    label = f"{name} {arm} {seed}"
    settings = [
        f"--seed_everything={seed}",
        f"--trainer.max_steps={paper.rollouts}",
        f"--trainer.default_root_dir={RESULTS}",
    ]
    settings.append(f"--trainer.val_check_interval={paper.validate_every}")
    logger = ["--trainer.logger.init_args.tracking_uri=" + URI, f"--trainer.logger.init_args.run_name={label}"]
    cli = command_line(["fit", *own, *given, *settings, *logger])
    plan = cli.model.batch
    found = {
        "minutes": (time.perf_counter() - started) / 60,
        "rows": plan.prompts_per_rollout * plan.group_size,
        "curves": curves(URI, label),
    }
    atomic_write_text(RESULTS / f"{name}_{arm}_{seed}.json", json.dumps(found))


def results(name: str, paper: Paper, arm: str) -> list[dict[str, Any]]:
    paths = [RESULTS / f"{name}_{arm}_{seed}.json" for seed in SEEDS if arm in paper.arms]
    return [json.loads(path.read_text()) for path in paths if path.is_file()]


# ---- the report ---------------------------------------------------------------------------------------------------------------


def tokens(result: dict[str, Any]) -> list[float]:
    """Generated training tokens up to and including each rollout."""
    extra = dict(result["curves"].get("train/extra_tokens", result["curves"].get("train/laser_monitor_tokens", [])))
    total, sums = 0.0, []
    for step, length in result["curves"]["train/length"]:
        total += length * result["rows"] + extra.get(step, 0.0)
        sums.append(total)
    return sums


def at(curve: Curve, fraction: float) -> float:
    """The value at the beginning or the end of a curve: of validations the first, or the mean of the last three; of rollouts the mean of a tenth."""
    width = len(curve) // 10 if len(curve) > 20 else 1 if fraction == 0 else min(3, len(curve) // 3 or 1)
    part = curve[:width] if fraction == 0 else curve[-width:]
    return mean(value for _, value in part)


def until(result: dict[str, Any], budget: float) -> dict[str, Any]:
    """The result as it stood when so many tokens had been generated."""
    rollouts = sum(total <= budget for total in tokens(result))
    cut = {
        metric: [point for point in curve if point[0] < rollouts] or curve[:1]
        for metric, curve in result["curves"].items()
    }
    return result | {"curves": cut}


def interval(values: list[float]) -> str:
    """Mean and the half width of Student's 95 % interval over seeds."""
    found = [value for value in values if not math.isnan(value)]
    if not found:
        return ""
    digits = 3 if max(map(abs, found)) < 10 else 1
    if len(found) < 2:
        return f"{found[0]:.{digits}f}"
    half = float(student.ppf(0.975, len(found) - 1)) * stdev(found) / math.sqrt(len(found))
    return f"{mean(found):.{digits}f} ± {half:.{digits}f}"


def rows_of(name: str, paper: Paper) -> list[str]:
    shown = {arm: results(name, paper, arm) for arm in paper.arms}
    method = next(arm for arm in paper.arms if arm != "grpo")
    if shown.get("grpo") and len(shown[method]) == len(shown["grpo"]):
        budgets = [tokens(result)[-1] for result in shown[method]]
        pairs = list(zip(shown["grpo"], budgets, strict=True))
        if any(tokens(result)[-1] > budget for result, budget in pairs):
            shown["grpo, equal tokens"] = [until(result, budget) for result, budget in pairs]
    lines = []
    for arm, found in shown.items():
        cells = []
        for heading, metric in paper.columns.items():
            have = [result["curves"][metric] for result in found if result["curves"].get(metric)]
            start = interval([at(curve, 0) for curve in have]) if metric.startswith("val/") else ""
            cells.append(
                f"{heading}: {start + ' → ' if start else ''}{interval([at(curve, 1) for curve in have])}"
                if have
                else ""
            )
        spent = f"{mean(tokens(result)[-1] for result in found) / 1000:.0f} k" if found and "equal" not in arm else ""
        lines.append(f"| {name} | {arm} | {len(found)} | {'; '.join(cell for cell in cells if cell)} | {spent} |")
    return lines


def table() -> str:
    lines = [
        "| paper | arm | seeds | start → end (mean of the last three validations), mean ± 95 % interval over seeds | tokens |",
        "|---|---|---|---|---|",
    ]
    for name, paper in PAPERS.items():
        lines += rows_of(name, paper)
    return "\n".join(lines)


def plot(name: str, paper: Paper) -> None:
    """The columns' metrics against generated tokens, a line a seed."""
    figure = Figure(figsize=(3.8 * len(paper.columns), 3.0), layout="constrained")
    panels = figure.subplots(1, len(paper.columns), squeeze=False)[0]
    for panel, (heading, metric) in zip(panels, paper.columns.items(), strict=True):
        for color, arm in enumerate(paper.arms):
            for number, result in enumerate(results(name, paper, arm)):
                total = [0.0, *tokens(result)]
                curve = [(total[step + 1] / 1000, value) for step, value in result["curves"].get(metric, [])]
                if curve and metric.startswith("val/"):  # the first validation comes before the first rollout
                    curve[0] = (0.0, curve[0][1])
                if curve:
                    panel.plot(
                        *zip(*curve, strict=True), color=f"C{color}", linewidth=1, label=arm if number == 0 else None
                    )
        panel.set(xlabel="generated tokens, thousands", ylabel=heading)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    out = Path("docs/plots/papers")
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.png", dpi=90)


def main(run: bool = True, only: str | None = None, seeds: int = len(SEEDS)) -> None:
    """Run the arms that have no result, then write the table of all that have.

    Args:
        run: False reports only. only: one paper's name. seeds: how many of each arm.
    """
    if only is not None and only not in PAPERS:
        raise ConfigError(f"--only names {only!r}; the papers are {', '.join(PAPERS)}.")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS[:seeds] if run else []:
        for name, paper in PAPERS.items():
            for arm in paper.arms if only in (None, name) else []:
                if not (RESULTS / f"{name}_{arm}_{seed}.json").is_file():
                    print(f"=== {name}: {arm}, seed {seed}", flush=True)
                    run_arm(name, paper, arm, seed)
    found = table()
    print(found)
    for name, paper in PAPERS.items():
        if all(results(name, paper, arm) for arm in paper.arms):
            plot(name, paper)
            page = "s_grpo" if name == "t_spmo" else name
            found += f"\n\n[{name}]({page}.md). {paper.expect}\n\n![{name}](plots/papers/{name}.png)"
    before, _, rest = PAGE.read_text().partition(BEGIN)
    atomic_write_text(PAGE, f"{before}{BEGIN}\n{found}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    try:
        auto_cli(main, as_positional=False)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
