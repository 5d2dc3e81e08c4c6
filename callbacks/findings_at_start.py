"""Checks for silent failures before the first rollout: one function per failure, with its threshold and the reason.

A check reads the module and its data. It returns one paragraph with the measured figure and the setting to change, or
None.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rewards.base import Reward
from rewards.function_reward import FunctionReward
from rewards.tasks import TRIVIAL, ReasoningGymScore, task_of
from rollouts import RolloutBatch, ends_open, text_batch, written
from support.prompt_identity import prompt_fingerprints
from support.seeding import isolated_rng, run_seed

#: number of training rows whose trivial answers are scored
TRIED = 8
#: mean score of a trivial answer from which a scorer is reported; a guess between two values earns 0.5 on average
GENEROUS_FROM = 0.25


def end_token_mismatch(module: Any, data: Any) -> str | None:
    """The model's end tokens do not include the tokenizer's."""
    policy = module.policy
    tokenizer_eos, model_eos = policy.tokenizer.eos_token_id, policy.model_eos_ids
    if not model_eos or tokenizer_eos in model_eos:
        return None
    name = policy.tokenizer.convert_ids_to_tokens(tokenizer_eos)
    return (
        f"The tokenizer's end token {name!r} ({tokenizer_eos}) is not among the model's own {sorted(model_eos)}. "
        "Completions end at either, but padding and supervised targets use the tokenizer's. Set tokenizer.eos_token, "
        "or eos_token_id in the generation config, and save the folder."
    )


MARKS = re.compile(r"<\|\w+\|>|\[/?INST\]|<(?:start|end)_of_turn>")
SPOKEN = re.compile(r"^[^\S\n]{0,20}(?:user|human|instruction|system)[^\S\n]{0,20}:", re.IGNORECASE | re.MULTILINE)
CUED = re.compile(r"(?:assistant|response|answer|model)\s?:?\s{0,20}(?:<think>)?\s{0,20}$", re.IGNORECASE)


def chat_template(module: Any, data: Any) -> str | None:
    """Prompts that contain chat marks: a template adds them a second time, and a tokenizer without them splits them."""
    tokenizer, row = module.policy.tokenizer, data.rows("train")[0]
    if not isinstance(row["prompt"], str):
        return None
    mark = MARKS.search(row["prompt"])
    if tokenizer.chat_template and mark:
        return (
            f"The prompt {row['prompt'][:60]!r} already contains chat marks ({mark[0]}), and the tokenizer's chat "
            "template puts them around it again. Give prompts as plain text or as messages [{role, content}]."
        )
    unknown = mark and len(tokenizer(mark[0], add_special_tokens=False)["input_ids"]) > 1
    spoken = SPOKEN.search(row["prompt"]) and not CUED.search(row["prompt"])
    if tokenizer.chat_template or not (unknown or spoken):
        return None
    why = "nothing at the end of the prompts tells the model to answer"
    if mark and unknown:
        why = f"{mark[0]} is not a token of this model"
    return (
        f"Prompts look like a chat ({row['prompt'][:60]!r}), but the tokenizer of {module.policy.params.model} has no "
        f"chat template, and {why}. Use the instruction-tuned model's tokenizer, or set tokenizer.chat_template, save "
        "the folder, and give prompts without chat marks."
    )


def leaked_prompts(module: Any, data: Any) -> str | None:
    """Validation prompts that are also training prompts; 1 % may repeat by chance, more measures memorisation."""
    train, held_out = (prompt_fingerprints(row["prompt"] for row in data.rows(split)) for split in ("train", "val"))
    both = len(train & held_out)
    if not held_out or both <= 0.01 * len(held_out):
        return None
    return (
        f"{both} of {len(held_out)} different validation prompts are also training prompts (up to case and white "
        "space), so the val/ metrics measure memorisation too. Drop them from one split, or split by prompt "
        "(data.val_source, a hash of the prompt)."
    )


def trivial_answer(module: Any, data: Any) -> str | None:
    """On half of the rows, an empty completion or the repeated prompt earns as much as the right answer.

    It must also earn more than a wrong answer, or count as correct.
    """
    try:
        batch = _scored(module, data)
    except Exception as error:
        return (
            "Scoring an empty completion, or the prompt repeated, raised "
            f"{type(error).__name__}: {str(error)[:200]}. A model can write either at any time, which would end the "
            "run. Let the reward return 0 for completions that it cannot read."
        )
    if batch is None:
        return None
    empty, repeated, right, wrong = _by_answer(module.totals(batch))
    judge = next((reward for reward in module.rewards if reward.is_correctness), None)
    called_right = None if judge is None else _by_answer(judge.unscaled(batch.rewards[judge.name], batch) >= 1)
    for name, place, value in (("an empty completion", 0, empty), ("the prompt repeated", 1, repeated)):
        fooled = (value >= right) & (value > wrong)
        if called_right is not None:
            fooled |= called_right[place]
        if fooled.float().mean() >= 0.5:
            means = [float(scores[fooled].mean()) for scores in (value, right, wrong)]
            return (
                f"The rewards give {name} {means[0]:.3g}, the right answer {means[1]:.3g} and a wrong one "
                f"{means[2]:.3g} (means of {int(fooled.sum())} of {len(value)} training rows where it earns as much "
                "as the right one). The policy will exploit that: compare the whole answer, and let a completion "
                "without an answer earn nothing."
            )
    return None


def wrong_answer(module: Any, data: Any) -> str | None:
    """A reward gives another row's answer as much as the right one, and more than an empty completion.

    Checked for rewards that judge correctness and for functions with a parameter `answer`. Where both answers earn
    nothing, the reward requires a format that a bare answer lacks, and the check says nothing.
    """
    try:
        batch = _scored(module, data)
    except Exception:  # reported by trivial_answer
        return None
    if batch is None:
        return None
    for reward in module.rewards:
        if not (
            reward.is_correctness
            or (isinstance(reward, FunctionReward) and "answer" in inspect.signature(reward.function).parameters)
        ):
            continue
        empty, _, right, wrong = _by_answer(batch.rewards[reward.name])
        if ((wrong >= right) & (right > empty)).float().mean() >= 0.5:
            return (
                f"The reward {reward.name!r} gives a wrong answer {float(wrong.mean()):.3g} and the right one "
                f"{float(right.mean()):.3g} (means of {len(right)} training rows; the wrong one is another row's "
                "answer), so it cannot teach right answers. Check how it compares them, and that the data column "
                "contains what it expects."
            )
    return None


def generous_scorer(module: Any, data: Any) -> str | None:
    """A scorer of reasoning-gym gives an answer without content a quarter of a right one's reward or more."""
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    scorers: dict[str, ReasoningGymScore] = {}
    for row in data.rows("train"):
        if row.get("entry") is None or len(rows := by_task[task := task_of(row["entry"])]) == TRIED:
            continue
        asked = [part for part in _asked(module.rewards, row) if isinstance(part, ReasoningGymScore)]
        if asked:
            scorers[task] = asked[0]
            rows.append(row)
    paid = []
    for task, scorer in scorers.items():
        pairs = [
            (row, answer) for answer in TRIVIAL for row in by_task[task] if str(row.get("answer")).strip() != answer
        ]
        texts = [answer if scorer.extract != "tags" else f"<answer>{answer}</answer>" for _, answer in pairs]
        scores = scorer(text_batch(texts, [row for row, _ in pairs])).tolist()
        means = {
            answer: sum(earned) / len(earned)
            for answer in TRIVIAL
            if (earned := [score for (_, other), score in zip(pairs, scores, strict=True) if other == answer])
        }
        best = max(means, key=means.__getitem__, default="")
        if means.get(best, 0.0) >= GENEROUS_FROM:
            paid.append(f"{task} pays {best!r} {means[best]:.2g}")
    if not paid:
        return None
    return (
        f"Scorers of reasoning-gym reward answers without content: {'; '.join(paid)} (means over at most {TRIED} "
        "training rows with another answer). The policy will exploit that: remove these tasks from data.tasks, or "
        "score them with rewards.ExactAnswer through rewards.PerTask."
    )


def _asked(rewards: list[Reward], row: dict[str, Any]) -> Iterator[Reward]:
    """The rewards that score completions of a data row, including those inside other rewards."""
    for reward in rewards:
        yield reward
        yield from _asked(reward.parts_for(row), row)


def _scored(module: Any, data: Any) -> RolloutBatch | None:
    """Four completions for each of a few training rows: nothing, the prompt repeated, the right answer, a wrong one.

    Needs rows with an `answer`. Returns None if a reward waits for others (a judge), because its calls may cost money,
    or reads turns, which such completions do not have.
    """
    rows = [row for row in data.rows("train")[:TRIED] if row.get("answer") is not None]
    if not rows or not module.rewards or any(reward.waits or reward.reads_turns for reward in module.rewards):
        return None
    prompts = [module.prompt_tokens(row) for row in rows]
    texts = []
    for row in rows:
        wrong = next(
            (str(other["answer"]) for other in rows if str(other["answer"]) != str(row["answer"])), f"{row['answer']}0"
        )
        texts += [
            "",
            row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"],
            str(row["answer"]),
            wrong,
        ]
    batch = written(module.policy, prompts, rows, texts)
    if any(ends_open(text) for text in module.policy.decode(batch.prompt_ids, batch.prompt_mask)):
        batch = written(module.policy, prompts, rows, [f"</think>{text}" for text in texts])
    with isolated_rng("doctor", run_seed()):
        batch.rewards = module.score(batch)
    return batch


def _by_answer(values: Float[Tensor, "rows"]) -> tuple[Tensor, ...]:
    return values.view(-1, 4).unbind(1)


AT_START = (end_token_mismatch, chat_template, leaked_prompts, trivial_answer, wrong_answer, generous_scorer)
