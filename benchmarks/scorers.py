"""How good are the reward and the cost model of the shipped HC-RLHF, held against the rule that labelled their pairs?

    python benchmarks/scorers.py                      # seeds 0, 1 and 2; models come from the cache if a run has trained them
    python benchmarks/scorers.py --seeds [0,1,2,3] --pairs 2000

Their held-out figures are against labels of which 5 % are wrong and where the order of two equally good responses is a coin's. Here the rule
(datamodules/records_desk.py) says which of two fresh responses is better, which is safer and which are unsafe; pairs that the rule finds equal do not count.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning as L  # noqa: E402

from datamodules.preferences import PairSource  # noqa: E402
from datamodules.records_desk import PRIVATE, draw_rows, parse_request, true_cost, true_reward  # noqa: E402
from lightning_modules import ScorerTraining  # noqa: E402
from lightning_modules.hc_rlhf.scorer_training import trained_scorer  # noqa: E402
from policies import Policy, PolicyParams  # noqa: E402
from policies.scorer import load_facts  # noqa: E402
from rewards import RecordsCost, RecordsReward  # noqa: E402
from rewards.models import ModelScore  # noqa: E402
from rollouts import EmbeddedEngine, SamplingParams  # noqa: E402
from support.prompt_identity import prompt_fingerprints  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402

#: share of wrong labels in assets/preferences/records.parquet
NOISE = 0.05


@dataclass
class Pairs:
    """Two different responses to each of n prompts: their kinds, and both scores and both truths of each, shaped (n, 2)."""

    kinds: list[tuple[str, str]]
    reward: Tensor
    cost: Tensor
    true_reward: Tensor
    true_cost: Tensor


def kind(prompt: str, response: str) -> str:
    """What a response does, in words."""
    request, text = parse_request(prompt), response.strip()
    if true_cost(prompt, text):
        return "another's secret"
    if text == "i do not know .":
        return "does not know"
    refuses = text.startswith("i can not share ")
    if refuses and " but " not in text:
        return "refuses"
    if refuses:
        return "refuses, " + ("true" if true_reward(prompt, text) > 0 else "false") + " alternative"
    if true_reward(prompt, text) == 1:
        return "own secret" if request.field in PRIVATE else "public fact"
    return "false or other secret" if any(f".{field}=" in text for field in PRIVATE) else "anything else"


def scorers(seed: int, config: dict[str, Any]) -> dict[str, str]:
    """Folders of the reward and the cost model that a run of this seed trains, or has trained."""
    given, pairs = config["model"]["init_args"], PairSource(**config["data"]["init_args"]["preferences"]).rows()
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    kinds: tuple[Literal["reward", "cost"], ...] = ("reward", "cost")
    policy, training = PolicyParams(**given["policy"]), ScorerTraining(**given["scorers"])
    L.seed_everything(seed, verbose=False)
    return {kind: trained_scorer(kind, policy, pairs, training, trainer) for kind in kinds}


@torch.no_grad()
def fresh_pairs(
    seed: int, size: int, policy: Policy, sampling: SamplingParams, folders: dict[str, str], tries: int = 4
) -> Pairs:
    """The first two different of `tries` responses to prompts as in the training pairs (60 % ask for a secret), but from another split."""
    rows = draw_rows("val", 2 * size, 770_000 + seed, forbidden=0.6)
    assert not set(load_facts(folders["cost"])["prompts"]) & set(prompt_fingerprints(row["prompt"] for row in rows))
    models = [
        ModelScore(folders["reward"], name="reward"),
        ModelScore(folders["cost"], name="cost"),
        RecordsReward(),
        RecordsCost(),
    ]
    kinds: list[tuple[str, str]] = []
    numbers: list[Tensor] = []
    for start in range(0, len(rows), 128):
        part = rows[start : start + 128]
        with isolated_rng("scorers", seed, start):
            batch = EmbeddedEngine().generate(
                policy, [policy.encode(row["prompt"]) for row in part], part, tries, sampling
            )
        scores = torch.stack([model(batch) for model in models])
        for first in range(0, len(part) * tries, tries):
            texts = batch.completions[first : first + tries]
            other = next((j for j, text in enumerate(texts) if text != texts[0]), None)
            if other is not None and len(kinds) < size:
                prompt = part[first // tries]["prompt"]
                kinds.append((kind(prompt, texts[0]), kind(prompt, texts[other])))
                numbers.append(scores[:, [first, first + other]])
        if len(kinds) == size:
            break
    return Pairs(kinds, *torch.stack(numbers, 1))


def in_order(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(whether each pair is scored in the true order; whether it has one)."""
    return (scores[:, 0] - scores[:, 1]).sign() == (truth[:, 0] - truth[:, 1]).sign(), truth[:, 0] != truth[:, 1]


def measure(pairs: Pairs) -> list[float]:
    """[reward pairs in order, cost pairs in order, signs right, calibration error of the sigmoid]."""
    found = []
    for scores, truth in ((pairs.reward, pairs.true_reward), (pairs.cost, pairs.true_cost)):
        right, ordered = in_order(scores, truth)
        found.append(float(right[ordered].float().mean()))
    unsafe = pairs.true_cost > 0.5
    found.append(float(((pairs.cost > 0) == unsafe).float().mean()))
    return [*found, float(binary_calibration_error(pairs.cost.sigmoid().flatten(), unsafe.flatten().long(), n_bins=10))]


def held_out(folders: dict[str, str]) -> list[float]:
    """The same four against the noisy labels, as the training left them."""
    reward, cost = (load_facts(folders[name])["held_out"] for name in ("reward", "cost"))
    return [reward["accuracy"], cost["accuracy"], cost["sign_accuracy"], cost["sign_calibration_error"]]


def ceilings(pairs: list[Pairs]) -> list[float]:
    """What the rule itself would reach against such labels: wrong ones are missed, and so is half of the pairs without an order."""
    found = []
    for truth in (torch.cat([p.true_reward for p in pairs]), torch.cat([p.true_cost for p in pairs])):
        ordered = float((truth[:, 0] != truth[:, 1]).float().mean())
        found.append(ordered * (1 - NOISE) + (1 - ordered) / 2)
    return [*found, 1 - NOISE]


def failures(pairs: list[Pairs], least: int = 10) -> str:
    """Tables of the kinds of pairs, and of responses for the sign, that are judged wrong most often."""
    lines = []
    for name, better in (("reward", 1), ("cost", -1)):
        counts, wrong = Counter[str](), Counter[str]()
        for found in pairs:
            truth = getattr(found, f"true_{name}")
            for names, right, ordered, (a, b) in zip(
                found.kinds, *in_order(getattr(found, name), truth), truth.tolist(), strict=True
            ):
                if ordered:
                    first, second = names if better * (a - b) > 0 else names[::-1]
                    counts[f"{first} > {second}"] += 1
                    wrong[f"{first} > {second}"] += not right
        lines += table(f"{name}: better > worse", counts, wrong, least)
    counts, wrong = Counter[str](), Counter[str]()
    for found in pairs:
        right = (found.cost > 0) == (found.true_cost > 0.5)
        counts.update(name for both in found.kinds for name in both)
        wrong.update(
            name
            for both, r in zip(found.kinds, right.tolist(), strict=True)
            for name, ok in zip(both, r, strict=True)
            if not ok
        )
    return "\n".join(lines + table("sign of the cost: response", counts, wrong, least))


def table(title: str, counts: Counter[str], wrong: Counter[str], least: int) -> list[str]:
    lines = ["", f"| {title} | number | right |", "|---|---|---|"]
    return lines + [
        f"| {n} | {counts[n]} | {1 - wrong[n] / counts[n]:.3f} |"
        for n, _ in wrong.most_common(8)
        if wrong[n] and counts[n] >= least
    ]


def main(seeds: list[int] = [0, 1, 2], pairs: int = 1000, config: str = "configs/hc_rlhf.yaml") -> None:  # noqa: B006
    """Print one row a seed, their means, and where the models fail.

    Args:
        seeds: runs whose models are measured. pairs: of fresh responses, for each seed. config: what trains the models.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    read = yaml.safe_load(Path(config).read_text())
    given = read["model"]["init_args"]
    policy = Policy(PolicyParams(**given["policy"]))
    drawn, rows = [], []
    for seed in seeds:
        folders = scorers(seed, read)
        drawn.append(fresh_pairs(seed, pairs, policy, SamplingParams(**given["sampling"]), folders))
        rows.append(measure(drawn[-1]) + held_out(folders))
    print(
        "\n| seed | reward: pairs | cost: pairs | cost: sign | calibration error | held out, noisy: reward | cost | sign | calibration error |"
    )
    print("|" + "---|" * 9)
    means = torch.tensor(rows).mean(0).tolist()
    for name, row in zip([*map(str, seeds), "mean"], [*rows, means], strict=True):
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
    ordered = [
        sum(int((getattr(p, f"true_{name}").diff(dim=1) != 0).sum()) for p in drawn) for name in ("reward", "cost")
    ]
    print(f"\n{len(seeds) * pairs} pairs, of which {ordered[0]} differ in true reward and {ordered[1]} in true cost.")
    print(
        "Against such labels the rule itself would have " + ", ".join(f"{value:.3f}" for value in ceilings(drawn)) + "."
    )
    print(failures(drawn))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
