"""Quality of the reward model and the cost model of the shipped HC-RLHF, against the rule that labelled their pairs.

    python benchmarks/scorers.py                      # seeds 0, 1 and 2; models that a run has trained are in the cache
    python benchmarks/scorers.py --seeds [0,1,2,3] --pairs 2000

Their held-out figures are measured against labels of which 5 % are wrong and in which the order of two equally good
responses is random. Here the rule (datamodules/records_desk.py) says which of two fresh responses is better, which is
safer and which are unsafe; pairs that are equal by the rule do not count.
"""

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

from benchmarks.common import markdown_table, use_threads  # noqa: E402
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

#: fraction of wrong labels in assets/preferences/records.parquet
NOISE = 0.05


@dataclass
class Pairs:
    """Two different responses to each of n prompts.

    Fields:
        kinds: kinds of both responses, as `kind` names them.
        reward, cost: scores of the models, shaped (n, 2).
        true_reward, true_cost: reward and cost by the rule, shaped (n, 2).
    """

    kinds: list[tuple[str, str]]
    reward: Tensor
    cost: Tensor
    true_reward: Tensor
    true_cost: Tensor


def kind(prompt: str, response: str) -> str:
    """The kind of a response, in words."""
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
    """Folders of the reward model and the cost model of a run with this seed, trained unless they are in the cache."""
    settings, pairs = config["model"]["init_args"], PairSource(**config["data"]["init_args"]["preferences"]).rows()
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    kinds: tuple[Literal["reward", "cost"], ...] = ("reward", "cost")
    policy, training = PolicyParams(**settings["policy"]), ScorerTraining(**settings["scorers"])
    L.seed_everything(seed, verbose=False)
    return {kind: trained_scorer(kind, policy, pairs, training, trainer) for kind in kinds}


@torch.no_grad()
def fresh_pairs(
    seed: int, size: int, policy: Policy, sampling: SamplingParams, folders: dict[str, str], tries: int = 4
) -> Pairs:
    """The first two different of `tries` responses per prompt; the prompts are as in the training pairs (60 % ask for a
    secret), but from another split."""
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
        batch_rows = rows[start : start + 128]
        prompt_ids = [policy.encode(row["prompt"]) for row in batch_rows]
        with isolated_rng("scorers", seed, start):
            batch = EmbeddedEngine().generate(policy, prompt_ids, batch_rows, tries, sampling)
        scores = torch.stack([model(batch) for model in models])
        for first in range(0, len(batch_rows) * tries, tries):
            texts = batch.completions[first : first + tries]
            other = next((j for j, text in enumerate(texts) if text != texts[0]), None)
            if other is not None and len(kinds) < size:
                prompt = batch_rows[first // tries]["prompt"]
                kinds.append((kind(prompt, texts[0]), kind(prompt, texts[other])))
                numbers.append(scores[:, [first, first + other]])
        if len(kinds) == size:
            break
    return Pairs(kinds, *torch.stack(numbers, 1))


def in_order(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(whether each pair is scored in the true order, whether it has a true order), each shaped (n,)."""
    return (scores[:, 0] - scores[:, 1]).sign() == (truth[:, 0] - truth[:, 1]).sign(), truth[:, 0] != truth[:, 1]


def measure(pairs: Pairs) -> list[float]:
    """[fraction of reward pairs in order, of cost pairs in order, of right signs, calibration error of the sigmoid]."""
    figures = []
    for scores, truth in ((pairs.reward, pairs.true_reward), (pairs.cost, pairs.true_cost)):
        right, ordered = in_order(scores, truth)
        figures.append(float(right[ordered].float().mean()))
    unsafe = pairs.true_cost > 0.5
    figures.append(float(((pairs.cost > 0) == unsafe).float().mean()))
    probabilities = pairs.cost.sigmoid().flatten()
    return [*figures, float(binary_calibration_error(probabilities, unsafe.flatten().long(), n_bins=10))]


def held_out(folders: dict[str, str]) -> list[float]:
    """The same four figures against the noisy labels, as stored by the training."""
    reward, cost = (load_facts(folders[name])["held_out"] for name in ("reward", "cost"))
    return [reward["accuracy"], cost["accuracy"], cost["sign_accuracy"], cost["sign_calibration_error"]]


def ceilings(pairs: list[Pairs]) -> list[float]:
    """The figures that the rule itself would reach against such labels: it misses all wrong labels, and half of the
    pairs without an order."""
    figures = []
    for truth in (torch.cat([p.true_reward for p in pairs]), torch.cat([p.true_cost for p in pairs])):
        ordered = float((truth[:, 0] != truth[:, 1]).float().mean())
        figures.append(ordered * (1 - NOISE) + (1 - ordered) / 2)
    return [*figures, 1 - NOISE]


def failures(all_pairs: list[Pairs], min_count: int = 10) -> str:
    """Tables of the kinds of pairs, and for the sign of the cost the kinds of responses, that are misjudged most often.

    Args:
        min_count: minimum number of pairs or responses of a kind that is listed.
    """
    tables = []
    for name, better in (("reward", 1), ("cost", -1)):
        counts, wrong = Counter[str](), Counter[str]()
        for pairs in all_pairs:
            truth = getattr(pairs, f"true_{name}")
            right, ordered = in_order(getattr(pairs, name), truth)
            for kinds, is_right, has_order, (a, b) in zip(pairs.kinds, right, ordered, truth.tolist(), strict=True):
                if has_order:
                    first, second = kinds if better * (a - b) > 0 else kinds[::-1]
                    counts[f"{first} > {second}"] += 1
                    wrong[f"{first} > {second}"] += not is_right
        tables.append(failure_table(f"{name}: better > worse", counts, wrong, min_count))
    counts, wrong = Counter[str](), Counter[str]()
    for pairs in all_pairs:
        right = (pairs.cost > 0) == (pairs.true_cost > 0.5)
        for kinds, are_right in zip(pairs.kinds, right.tolist(), strict=True):
            counts.update(kinds)
            wrong.update(kind for kind, is_right in zip(kinds, are_right, strict=True) if not is_right)
    tables.append(failure_table("sign of the cost: response", counts, wrong, min_count))
    return "\n\n".join(tables)


def failure_table(title: str, counts: Counter[str], wrong: Counter[str], min_count: int) -> str:
    """The eight kinds with the most errors."""
    rows = [
        [kind, str(counts[kind]), f"{1 - wrong[kind] / counts[kind]:.3f}"]
        for kind, _ in wrong.most_common(8)
        if wrong[kind] and counts[kind] >= min_count
    ]
    return markdown_table([title, "number", "right"], rows)


def main(seeds: list[int] = [0, 1, 2], pairs: int = 1000, config: str = "configs/hc_rlhf.yaml") -> None:  # noqa: B006
    """Print one row per seed, their means, and the most frequent failures.

    Args:
        seeds: seeds of the runs whose models are measured.
        pairs: number of pairs of fresh responses per seed.
        config: configuration that trains the models.
    """
    use_threads()
    configuration = yaml.safe_load(Path(config).read_text())
    settings = configuration["model"]["init_args"]
    policy, sampling = Policy(PolicyParams(**settings["policy"])), SamplingParams(**settings["sampling"])
    pairs_by_seed, figures = [], []
    for seed in seeds:
        folders = scorers(seed, configuration)
        pairs_by_seed.append(fresh_pairs(seed, pairs, policy, sampling, folders))
        figures.append(measure(pairs_by_seed[-1]) + held_out(folders))
    means = torch.tensor(figures).mean(0).tolist()
    rows = [
        [name, *(f"{value:.3f}" for value in row)]
        for name, row in zip([*map(str, seeds), "mean"], [*figures, means], strict=True)
    ]
    head = ["seed", "reward: pairs", "cost: pairs", "cost: sign", "calibration error"]
    head += ["held out, noisy: reward", "cost", "sign", "calibration error"]
    print(f"\n{markdown_table(head, rows)}")
    differing = [
        sum(int((getattr(p, f"true_{name}").diff(dim=1) != 0).sum()) for p in pairs_by_seed)
        for name in ("reward", "cost")
    ]
    print(
        f"\n{len(seeds) * pairs} pairs, of which {differing[0]} differ in true reward and {differing[1]} in true cost."
    )
    reachable = ", ".join(f"{value:.3f}" for value in ceilings(pairs_by_seed))
    print(f"Against such labels the rule itself would reach {reachable}.")
    print(f"\n{failures(pairs_by_seed)}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
