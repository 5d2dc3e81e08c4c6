"""The seam of completions of several turns: an environment decides what follows each turn of the policy."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.tokenizer import template_uses
from rollouts.turns import FinishReason
from support.errors import ConfigError


@dataclass(frozen=True)
class Turn:
    """One turn of the policy.

    Args:
        text: what the policy wrote, with stop texts and without end tokens.
        tokens: number of its tokens, with the end token.
        finish: why it ended: by an end token, a stop text, or its maximum length.
    """

    text: str
    tokens: int
    finish: FinishReason


@dataclass
class Conversation:
    """Everything that an environment knows about one completion.

    Args:
        row: the prompt's data row (answer, task, id).
        seed: a number that belongs to this completion, for environments that draw: random.Random(seed).
        room: tokens that are left for the environment's text and the policy's further turns together.
        opened: whether the chat template begins the policy's messages within an open think block.
        turns: the policy's turns so far; the last one has just ended.
        state: for the environment's own use, e.g. the variables of a tool; empty before the first turn ends.
    """

    row: Mapping[str, Any]
    seed: int
    room: int
    turns: list[Turn] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    opened: bool = False


@dataclass(frozen=True)
class Reply:
    """The answer of an environment to a turn. With neither `text` nor `messages` the conversation ends.

    No token of a reply is the policy's choice: all are False in the action mask.

    Args:
        text: appended behind the turn's last token as it is, such as the output of a tool within the reasoning; "" lets
            the policy go on. Control tokens that it spells stay text.
        messages: chat messages of others (user, tool), which the chat template puts behind the turn, up to the
            beginning of the policy's next turn.
        reward: of the turn that has ended; None for no reward.
        max_tokens: maximum number of tokens of the next turn; None for `Environment.max_turn_tokens`.
        stops: whether stop texts end the next turn.
        metrics: added to the completion's numbers, by names among `Environment.metrics`.
    """

    text: str | None = None
    messages: list[dict[str, str]] | None = None
    reward: float | None = None
    max_tokens: int | None = None
    stops: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def ends(self) -> bool:
        return self.text is None and self.messages is None


class Environment(ABC):
    """The other side of completions of several turns; `reply` decides what follows each turn.

    Engines call `reply` for every turn, also for one that used up the last token: its reward counts, its text does not.
    Everything that belongs to a completion is in the conversation, so that one environment serves all completions at
    once. A reply must depend on the conversation only: a resumed run repeats it.
    """

    #: maximum number of turns; a conversation that would go on is cut there and counts as truncated
    max_turns: int = 8
    #: maximum number of tokens of a turn; None for no other limit than sampling.max_new_tokens, which bounds all turns
    #: and the environment's text together
    max_turn_tokens: int | None = None
    #: texts that end a turn, in addition to sampling.stop; the turn keeps them
    stop: tuple[str, ...] = ()
    #: names of the numbers that replies count
    metrics: tuple[str, ...] = ()
    #: whether `reply` mostly waits (a sandbox, HTTP); it then runs on threads while other rows are decoded
    waits: bool = False
    #: decoding steps during which other rows go on while a reply is waited for. The row comes back at this step and
    #: not earlier: which rows are computed together, and with it every rounding, must not depend on the clock.
    overlap: int = 32
    #: seconds after which a reply that does not come ends the run, and maximum number of replies at the same time
    timeout_s: float = 600.0
    concurrent: int = 16

    @abstractmethod
    def reply(self, conversation: Conversation) -> Reply:
        """Decide what follows the last turn of a conversation."""

    def template_arguments(self) -> dict[str, Any]:
        """Arguments of the chat template that prompts need, such as `tools`."""
        return {}


def add_template_arguments(tokenizer: Any, environment: Environment) -> None:
    """Let the tokenizer's prompts describe what the environment offers. Raises ConfigError if its template cannot."""
    needed = environment.template_arguments()
    if unused := [name for name in needed if not template_uses(tokenizer, name)]:
        raise ConfigError(
            f"{type(environment).__name__} describes itself to the model by the chat template's {unused[0]!r}, which "
            f"the template of {tokenizer.name_or_path} does not use; choose a model whose template does, or describe "
            "it in the prompts and set model.environment.describe to false."
        )
    tokenizer.chat_template_args = getattr(tokenizer, "chat_template_args", {}) | needed
