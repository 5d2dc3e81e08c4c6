"""What is compared, and what each method's configuration needs on the common task."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """One line of the comparison.

    Args:
        title: as people call it. paper: its arXiv number, empty for none. configs: of configs/, without .yaml. settings: arguments behind configs/compare.yaml, which
            put lengths and counts of rollouts in proportion to the common task.
    """

    title: str
    paper: str
    configs: tuple[str, ...]
    settings: tuple[str, ...] = ()


def part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def given(key: str, *parts: dict[str, Any]) -> str:
    return f"--{key}={json.dumps(list(parts))}"


RIGHT = part("rewards.ExactAnswer")
STAGES = [
    (0, 1),
    (17, 2),
    (51, 3),
]  # AutoThink's, at a quarter and three quarters of the default budget, as in its own configuration
METHODS: dict[str, Method] = {
    "grpo": Method("GRPO", "2402.03300", ("grpo",)),
    "prorl": Method(
        "ProRL",
        "2505.24864",
        ("prorl",),
        (
            given("model.rewards", RIGHT),
            given("trainer.callbacks", part("callbacks.ReferenceReset", every_n_rollouts=10)),
        ),
    ),
    "adapt_think": Method("AdaptThink", "2505.13417", ("adapt_think",)),
    "auto_think": Method(
        "AutoThink",
        "2505.10832",
        ("auto_think",),
        (
            given(
                "trainer.callbacks",
                part(
                    "callbacks.StageSchedule",
                    stages=[{"from_rollout": n, "set": {"stage": s}, "lr": 1e-4} for n, s in STAGES],
                ),
            ),
        ),
    ),
    "shorter_better": Method("ShorterBetter", "2504.21370", ("shorter_better",)),
    "laser": Method(
        "LASER",
        "2505.15612",
        ("laser",),
        (given("model.rewards", part("rewards.GradedAnswer"), part("rewards.Laser", target=48)),),
    ),
    "laser_d": Method(
        "LASER-D",
        "2505.15612",
        ("laser", "laser_d"),
        (
            given(
                "trainer.callbacks",
                part(
                    "callbacks.LaserMonitor",
                    every_n_rollouts=12,
                    size=16,
                    samples=8,
                    shortest=4,
                    longest=72,
                    interval=4,
                ),
            ),
        ),
    ),
    "hapo": Method("HAPO", "2505.11225", ("hapo",)),
    "open_rs": Method(
        "open-rs",
        "2503.16219",
        ("open_rs",),
        (
            given(
                "model.rewards",
                part("rewards.ExactAnswer", weight=0.0),
                part("rewards.Format", weight=1.0),
                part("rewards.CosineLength", max_length=72, weight=2.0),
            ),
        ),
    ),
    "curriculum": Method("GRPO, curriculum", "2402.03300", ("grpo", "curriculum")),
    "greso": Method("GRESO", "2506.02177", ("greso",), ("--model.batch.refill=1",)),
    "ktae": Method("KTAE", "2505.16826", ("ktae",)),
    "s_grpo": Method("S-GRPO (LoRA)", "2504.20834", ("s_grpo",)),
    "t_spmo": Method(
        "T-SPMO (LoRA)",
        "2504.20834",
        ("t_spmo",),
        ("--model.batch.prompts_per_rollout=4", "--model.batch.group_size=16"),
    ),
    "one_shot": Method(
        "1-shot RLVR",
        "2504.20571",
        ("one_shot",),
        (given("trainer.callbacks", part("callbacks.OneShot", ids=["2518+1128=?"])),),
    ),
    "still3": Method("STILL-3", "2503.04548", ("still3",)),
}
#: the policy losses and advantages of configs/objectives, over GRPO's configuration
OBJECTIVES: dict[str, Method] = {
    name: Method(title, paper, ("grpo", f"objectives/{name}"))
    for name, title, paper in (
        ("dr_grpo", "Dr. GRPO", "2503.20783"),
        ("dapo", "DAPO", "2503.14476"),
        ("rloo", "RLOO", "2402.14740"),
        ("reinforce_pp", "REINFORCE++", "2501.03262"),
        ("reinforce_pp_baseline", "REINFORCE++ with baseline", "2501.03262"),
        ("cispo", "CISPO", "2506.13585"),
        ("gspo", "GSPO", "2507.18071"),
        ("sapo", "SAPO", "2511.20347"),
        ("gdpo", "GDPO", "2601.05242"),
        ("lite_ppo", "Lite PPO", "2508.08221"),
        ("pass_at_k", "pass@k", "2505.15201"),
        ("prorl_v2", "ProRL v2", ""),
        ("vespo", "VESPO", "2602.10693"),
    )
}
#: its task has a cost, so that its numbers compare with no other's; its answers have five tokens, so that a quarter of the tokens makes as many rollouts
HELP_DESK = Method(
    "HC-RLHF",
    "2506.08266",
    ("hc_rlhf",),
    ("--trainer.max_steps=-1", "--model.test.skip=true", "--data.seed=0", "--trainer.val_check_interval=20"),
)
#: (title, its configurations, why it is not compared)
LEFT_OUT = (
    ("SATURN", ("saturn",), "its task is SAT problems"),
    ("ThinkJSON", ("think_json",), "its task is objects that fill a schema"),
    (
        "Self-verification",
        ("self_verify",),
        "its start must be able to judge a solution, which this one has never seen",
    ),
    (
        "SFT, reward and cost models",
        ("sft", "cold_start_smollm2", "reward_model", "cost_model"),
        "they learn from given data, so a budget of generated tokens says nothing about them",
    ),
)


def arguments(method: Method, seed: int, tokens: int) -> list[str]:
    """The command line of one run behind `main.py fit`, but for where it is tracked."""
    desk = method is HELP_DESK
    common = [] if desk else ["--config=configs/compare.yaml"]
    budget = json.dumps(part("callbacks.TokenBudget", tokens=max(1, tokens // 4) if desk else tokens))
    return [
        *(f"--config=configs/{name}.yaml" for name in method.configs),
        *common,
        *method.settings,
        f"--trainer.callbacks+={budget}",
        f"--seed_everything={seed}",
    ]
