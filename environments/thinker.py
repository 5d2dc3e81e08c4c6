"""Thinker's dialogue: a fast answer, its verification, a slow answer, a summary (arXiv 2505.21097)."""

import copy
import math
from dataclasses import dataclass
from typing import Literal

from datamodules.thinker import turn_prompt
from rewards import MathAnswer, Reward
from rewards.self_check import answer_text
from rewards.self_verify import verdict_of
from rollouts import Conversation, Environment, Reply, text_batch
from support.errors import ConfigError

#: numbers of the turns, which always come in this order
FAST, VERIFY, SLOW, SUMMARY = range(4)
NAMES = ("fast", "verify", "slow", "summary")


@dataclass
class TurnBudgets:
    """Maximum numbers of tokens of the turns; a longer turn is cut and counts as it is.

    Args:
        fast, verify, slow, summary: of each turn.
    """

    fast: int = 1000
    verify: int = 6000
    slow: int = 6000
    summary: int = 1000

    def __post_init__(self) -> None:
        for name in NAMES:
            if getattr(self, name) < 1:
                raise ConfigError(f"environment.budgets.{name} is {getattr(self, name)}; set it to 1 or more.")


@dataclass
class TurnPrompts:
    """The user's messages before each turn but the first, whose prompt is the data row's.

    <problem>, <answer> (the latest one) and <budget> are replaced.

    Args:
        verify, slow, summary: of each turn.
    """

    verify: str = (
        "Is your answer right? Check it step by step in at most <budget> tokens. End with Yes if it is right, and with "
        "No if it is wrong."
    )
    slow: str = (
        "Your answer was judged wrong. Think about the problem again, step by step, in at most <budget> tokens, and "
        "put the new answer into \\boxed{}."
    )
    summary: str = "Summarise your solution in at most <budget> tokens, and put the answer into \\boxed{}."


class ThinkerDialogue(Environment):
    """Asks for a fast answer, its verification, a slow answer and a summary, each within a budget of its own.

    After the verification the dialogue ends if the fast answer is right, else the slow turn follows; after a right slow
    answer comes the summary. In training the truth decides (`transition: truth`). At inference the model's verdict does
    (`transition: verdict`): only a Yes ends the dialogue, and a summary follows every slow answer if `summarises`.

    The reward of a turn is 1 or 0: whether the answer is right, or whether the verdict is true. Without a verdict it is
    0. A row whose own answer cannot be read, or that has none, gets no rewards.

    Args:
        judge: judges answers.
        budgets: tokens of the turns.
        prompts: the user's messages.
        transition: what decides after the verification; `lightning_modules.Thinker` sets verdict in evaluations.
        summarises: whether the summary follows under `transition: verdict`, where nothing learns from it.
    """

    max_turns = len(NAMES)

    def __init__(
        self,
        judge: Reward = MathAnswer(),
        budgets: TurnBudgets = TurnBudgets(),
        prompts: TurnPrompts = TurnPrompts(),
        transition: Literal["truth", "verdict"] = "truth",
        summarises: bool = False,
    ) -> None:
        self.judge, self.budgets, self.prompts = copy.deepcopy((judge, budgets, prompts))  # defaults are shared
        if not self.judge.is_correctness:
            raise ConfigError(
                f"environment.judge is {type(judge).__name__}, which does not judge correctness; use one such as "
                "rewards.MathAnswer or rewards.ExactAnswer."
            )
        self.transition, self.summarises = transition, summarises
        self.max_turn_tokens = self.budgets.fast

    def reply(self, conversation: Conversation) -> Reply:
        turn, state = len(conversation.turns) - 1, conversation.state
        answer = answer_text(conversation.turns[-1].text, conversation.opened)
        if turn == VERIFY:
            verdict, right = verdict_of(answer), state["right"]
            reward = None if right is None else float(verdict is right)
            ends = right is not False if self.transition == "truth" else verdict is True
        else:
            state["answer"], state["right"] = answer, self.is_right(answer, conversation)
            reward = None if state["right"] is None else float(state["right"])
            summary_follows = state["right"] if self.transition == "truth" else self.summarises
            ends = turn == SUMMARY or (turn == SLOW and not summary_follows)
        return Reply(reward=reward) if ends else self._asked(turn + 1, conversation, reward)

    def is_right(self, answer: str, conversation: Conversation) -> bool | None:
        """Whether an answer is right; None if the row's own answer is missing or cannot be read."""
        row = dict(conversation.row)
        try:
            self.judge.check_columns(row)
        except ConfigError:
            return None
        batch = text_batch([answer], [row])
        grade = float(self.judge.unscaled(self.judge(batch), batch)[0])
        return None if math.isnan(grade) else grade >= 1

    def _asked(self, turn: int, conversation: Conversation, reward: float | None) -> Reply:
        name, problem = NAMES[turn], conversation.row.get("prompt", "")
        budget = getattr(self.budgets, name)
        text = turn_prompt(
            getattr(self.prompts, name),
            problem=problem if isinstance(problem, str) else problem[-1]["content"],
            answer=conversation.state["answer"],
            budget=budget,
        )
        return Reply(messages=[{"role": "user", "content": text}], reward=reward, max_tokens=budget)
