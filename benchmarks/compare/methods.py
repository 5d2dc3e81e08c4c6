"""The methods of the comparison, from the blocks of facts in the files that implement them."""

import json

from support.papers import Paper, all_objectives, all_papers, flags

#: Its task has a cost, so its numbers compare with no other's. Its answers have five tokens, so a quarter of the tokens
#: makes as many rollouts.
HELP_DESK: Paper = all_papers()["hc_rlhf"]
METHODS: dict[str, Paper] = {
    name: paper for name, paper in all_papers().items() if not paper.not_compared and paper is not HELP_DESK
}
#: the policy losses and advantages of configs/objectives, over GRPO's configuration; GRPO's own is configs/grpo.yaml
OBJECTIVES: dict[str, Paper] = {name: paper for name, paper in all_objectives().items() if name not in METHODS}
LEFT_OUT: tuple[Paper, ...] = tuple(paper for paper in all_papers().values() if paper.not_compared)


def arguments(method: Paper, seed: int, tokens: int) -> list[str]:
    """The command line of one run behind `main.py fit`, but for where it is tracked."""
    desk = method is HELP_DESK
    common = [] if desk else ["--config=configs/compare.yaml"]
    budget = {"class_path": "callbacks.TokenBudget", "init_args": {"tokens": max(1, tokens // 4) if desk else tokens}}
    return [
        *(f"--config=configs/{name}.yaml" for name in method.configs),
        *common,
        *flags(method.comparison),
        f"--trainer.callbacks+={json.dumps(budget)}",
        f"--seed_everything={seed}",
    ]
