"""Think blocks: how a model's block opens and closes, and whether a completion thought.

A block is read from token ids where `<think>` and `</think>` are single tokens, else from the text, since then their
letters may be merged with neighbouring tokens.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from policies import Policy
from policies.prompt_encoding import Prompt, begun_turn, encode_cut, render
from rollouts.batch import RolloutBatch, ends_open
from support.errors import ConfigError

OPENING, CLOSING = "<think>", "</think>"
BLANK, TEXT, OPENS, CLOSES = range(4)


class Mode(IntEnum):
    """The mode of a completion: it reasoned and then answered, answered at once, or did not close its reasoning."""

    THINKING = 0
    NO_THINKING = 1
    UNCLOSED = 2


@dataclass(frozen=True)
class ThinkingFormat:
    """The form of think blocks under one tokenizer, given by its chat template and markers.

    Fields:
        tokenizer: the policy's.
        opens_itself: the template's prompt ends with an open <think>, as DeepSeek-R1-Distill's does; with Qwen3's the
            model opens the block.
        closing: the token ids of </think>. marker_ids: ids of (<think>, </think>) if both are single tokens.
    """

    tokenizer: Any
    opens_itself: bool
    closing: tuple[int, ...]
    marker_ids: tuple[int, int] | None

    def prompt_tokens(self, prompt: Prompt, after: str = "") -> list[int]:
        """The prompt's token ids, ending in an open think block.

        Args:
            after: text behind <think>, white space included, e.g. AutoThink's ellipsis; if empty, the template's own.

        Raises:
            ConfigError: for a prompt that begins the assistant's turn with anything but an open think block.
        """
        text, mark = render(self.tokenizer, prompt)
        if (begun := begun_turn(prompt)) and not ends_open(text):
            raise ConfigError(
                f"the prompt {str(prompt)[:80]!r} begins the assistant's turn with {begun[:40]!r}, but this method "
                "decides how the turn begins: with a thought or without one. Remove the prompt's last message, or use "
                "a method that does not open think blocks, such as lightning_modules.GRPO."
            )
        if not ends_open(text):
            text += OPENING + "\n"
        if after:
            text = text.rstrip() + after
        return encode_cut(self.tokenizer, text, mark)

    def modes(self, batch: RolloutBatch) -> Int[Tensor, "rows"]:
        """The Mode of every completion.

        A block that holds only white space before </think> is not thinking. A completion thinks if it writes reasoning
        before </think>, or opens another block after it. It is unclosed if it ends in an open block. It answers at once
        if no block is open in the prompt, and it neither opens nor closes one.
        """
        kinds, opened = self._kinds(batch), torch.tensor(batch.opened, device=batch.completion_ids.device)
        closes, opens = kinds == CLOSES, kinds == OPENS
        closed, width = closes.any(1), kinds.shape[1]
        steps = torch.arange(width, device=kinds.device)
        first_close = torch.where(closed, closes.long().argmax(1), width)
        last_close = torch.where(closed, width - 1 - closes.flip(1).long().argmax(1), -1)
        before = steps < first_close[:, None]
        reasoned = ((kinds == TEXT) & before).any(1)
        opens_later = opens & ~before
        left_open = (opens & (steps > last_close[:, None])).any(1)
        unclosed = left_open | (~closed & opened)
        thinking = closed & (reasoned | opens_later.any(1))
        modes = torch.where(thinking, int(Mode.THINKING), int(Mode.NO_THINKING))
        return torch.where(unclosed, int(Mode.UNCLOSED), modes)

    def well_formed(self, batch: RolloutBatch) -> Bool[Tensor, "rows"]:
        """Whether each completion closes exactly one block and opens none.

        Where the prompt does not open the block, the completion may open one before it closes it.
        """
        kinds, opened = self._kinds(batch), torch.tensor(batch.opened, device=batch.completion_ids.device)
        first_open, first_close = ((kinds == kind).long().argmax(1) for kind in (OPENS, CLOSES))
        opens, closes = (kinds == OPENS).sum(1), (kinds == CLOSES).sum(1)
        opens_then_closes = ~opened & (opens == 1) & (first_open < first_close)
        return (closes == 1) & ((opens == 0) | opens_then_closes)

    def _kinds(self, batch: RolloutBatch) -> Int[Tensor, "rows time"]:
        """The kind of every position of a completion: blank, text, <think> or </think>; padding is blank."""
        if self.marker_ids is None:
            lines = [[_kind(piece) for piece in re.split(r"(</?think>)", text)] for text in batch.completions]
            width = max(map(len, lines))
            return torch.tensor(
                [line + [BLANK] * (width - len(line)) for line in lines], device=batch.completion_ids.device
            )
        ids, place = batch.completion_ids.unique(return_inverse=True)
        special = dict(zip(self.marker_ids, (OPENS, CLOSES), strict=True))
        table = torch.tensor(
            [special.get(i, int(bool(self._text(i).strip()))) for i in ids.tolist()], device=ids.device
        )
        return table[place].masked_fill(~batch.completion_mask, BLANK)

    def _text(self, token: int) -> str:
        return "" if token in self.tokenizer.all_special_ids else self.tokenizer.decode([token])


def _kind(piece: str) -> int:
    return {OPENING: OPENS, CLOSING: CLOSES}.get(piece, int(bool(piece.strip())))


def thinking_format(policy: Policy) -> ThinkingFormat | None:
    """The format of a policy's chat template; None if the template has no think block.

    It has one if its prompt opens <think>, or if it mentions </think> or `enable_thinking`.
    """
    tokenizer = policy.tokenizer
    template = tokenizer.chat_template
    if not template:
        return None
    text = render(tokenizer, "?")[0]
    opens = ends_open(text)
    if not opens and CLOSING not in template and "enable_thinking" not in template:
        return None
    opening, closing = (tuple(tokenizer(mark, add_special_tokens=False)["input_ids"]) for mark in (OPENING, CLOSING))
    single = (opening[0], closing[0]) if len(opening) == len(closing) == 1 else None
    return ThinkingFormat(tokenizer, opens, closing, single)


def needs_thinking(policy: Policy, method: str) -> ThinkingFormat:
    """The thinking format of the policy.

    Raises:
        ConfigError: names `method`, for a model without a think block, or whose prompt closes it.
    """
    form = thinking_format(policy)
    if form is None:
        raise ConfigError(
            f"{method} needs a model that thinks in <think> ... </think>, but the chat template of "
            f"{policy.params.model} neither opens <think> nor mentions </think>. Teach the model the format first "
            "with SFT and policy.open_thinking: true on rows that think (configs/cold_start_smollm2.yaml), then set "
            "policy.model to the exported folder."
        )
    if render(policy.tokenizer, "?")[0].rstrip().endswith(CLOSING):
        raise ConfigError(
            f"{method} decides by itself whether a completion thinks, but the chat template of {policy.params.model} "
            f"closes the think block in the prompt. Remove policy.chat_template_args "
            f"({policy.params.chat_template_args}) or set it so that thinking is enabled."
        )
    return form
