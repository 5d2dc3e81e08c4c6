"""The data type that all parts of a training step share."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policies import PromptGroups
from rollouts.turns import FinishReason, Turns


def ends_open(prompt: str) -> bool:
    """Whether a prompt's text ends with <think>, followed only by white space or an ellipsis."""
    return re.search(r"<think>[\s.…]*$", prompt) is not None


@dataclass
class RolloutBatch:
    """P prompts with G completions each: B = P * G rows, prompt-major. Prompts are stored once.

    Fields:
        prompt_ids: padded on the left. prompt_mask: True on real tokens.
        completion_ids: padded on the right. completion_mask: True up to and including the end token.
        action_mask: True on tokens that the policy chose (not forced, not padding).
        behaviour_logprobs: under the distribution that was sampled from (after temperature, top-k and top-p); 0 outside
            action_mask. NaN where the engine does not know them; the module that sampled then computes them.
        finish_reasons: why each completion ended: by an end token, a stop string, or its maximum length.
        rows: the data row of each prompt (answer, task, id).
        rewards: by name, one per completion; NaN where a reward does not apply.
        judges: the reward that computed each of `rewards`, by name; its `unscaled` tells which completions are correct.
        failures: by name of a reward that may fail, one per completion: 0 scored, 1 error, 2 time-out.
        advantages: one per completion or one per token, once computed.
        reference_logprobs: under the reference, once computed; 0 outside completion_mask.
        values, value_targets: of the state before each token, one per critic, once computed; targets are NaN in rows
            that no reward applied to.
        own_first: number of first tokens of each completion that the method drew itself (rollouts/first_tokens.py);
            None if it drew none.
        turns: of completions that an environment took part in (rollouts/environment.py); None without one.
        decoder: (ids, mask) -> texts, called when a text is first needed.
    """

    prompt_ids: Int[Tensor, "prompts prompt_time"]
    prompt_mask: Bool[Tensor, "prompts prompt_time"]
    completion_ids: Int[Tensor, "rows time"]
    completion_mask: Bool[Tensor, "rows time"]
    action_mask: Bool[Tensor, "rows time"]
    behaviour_logprobs: Float[Tensor, "rows time"]
    finish_reasons: list[FinishReason]
    rows: list[dict[str, Any]]
    rewards: dict[str, Float[Tensor, "rows"]] = field(default_factory=dict)
    judges: dict[str, Any] = field(default_factory=dict, repr=False)
    failures: dict[str, Int[Tensor, "rows"]] = field(default_factory=dict)
    advantages: Float[Tensor, "rows"] | Float[Tensor, "rows time"] | None = None
    reference_logprobs: Float[Tensor, "rows time"] | None = None
    values: Float[Tensor, "rows time critics"] | None = None
    value_targets: Float[Tensor, "rows time critics"] | None = None
    own_first: Int[Tensor, "rows"] | None = None
    turns: Turns | None = None
    decoder: Callable[[Tensor, Tensor], list[str]] | None = field(default=None, repr=False)
    _completions: list[str] | None = field(default=None, repr=False)
    #: by name of a reward, results by row of tests too costly to repeat; not passed on to other batches
    tested: dict[str, dict[int, bool]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        prompts, completions = self.prompt_ids.shape[0], self.completion_ids.shape[0]
        if prompts == 0 or completions % prompts:
            raise ValueError(f"{completions} completions do not form equal groups of {prompts} prompts.")
        if len(self.rows) != prompts or len(self.finish_reasons) != completions:
            raise ValueError(
                f"expected {prompts} data rows and {completions} finish reasons, got {len(self.rows)} and "
                f"{len(self.finish_reasons)}."
            )

    @classmethod
    def concatenate(cls, parts: "list[RolloutBatch]") -> "RolloutBatch":
        """One batch with the prompts of several batches of the same group size."""
        if len(parts) == 1:
            return parts[0]
        prompt_time = max(part.prompt_ids.shape[1] for part in parts)
        time = max(part.completion_ids.shape[1] for part in parts)

        def prompts(name: str) -> Tensor:
            return torch.cat([F.pad(x, (prompt_time - x.shape[1], 0)) for x in (getattr(part, name) for part in parts)])

        def rows(name: str) -> Tensor:
            return torch.cat([F.pad(x, (0, time - x.shape[1])) for x in (getattr(part, name) for part in parts)])

        return cls(
            prompt_ids=prompts("prompt_ids"),
            prompt_mask=prompts("prompt_mask"),
            completion_ids=rows("completion_ids"),
            completion_mask=rows("completion_mask"),
            action_mask=rows("action_mask"),
            behaviour_logprobs=rows("behaviour_logprobs"),
            finish_reasons=[reason for part in parts for reason in part.finish_reasons],
            rows=[row for part in parts for row in part.rows],
            rewards={name: torch.cat([part.rewards[name] for part in parts]) for name in parts[0].rewards},
            judges=parts[0].judges,
            failures={name: torch.cat([part.failures[name] for part in parts]) for name in parts[0].failures},
            own_first=None
            if parts[0].own_first is None
            else torch.cat([part.own_first for part in parts if part.own_first is not None]),
            turns=None if parts[0].turns is None else Turns.concatenate([p.turns for p in parts if p.turns]),
            decoder=parts[0].decoder,
        )

    def state_dict(self) -> dict[str, Any]:
        """The batch as plain data, which a checkpoint can hold.

        It lacks the decoder, the judges and the texts, which can be made anew.
        """
        left_out = ("decoder", "judges", "_completions", "tested")
        state = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}
        return state | {"turns": None if self.turns is None else vars(self.turns)}

    @classmethod
    def from_state_dict(
        cls, state: dict[str, Any], decoder: Callable[[Tensor, Tensor], list[str]] | None, device: torch.device
    ) -> "RolloutBatch":
        """The batch of a `state_dict` on a device, with a decoder such as `policy.decode`."""

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: moved(item) for name, item in value.items()}
            return value.to(device) if isinstance(value, Tensor) else value

        values = {name: moved(value) for name, value in state.items()}
        if values.get("turns") is not None:
            values["turns"] = Turns(**values["turns"])
        return cls(**values, decoder=decoder)

    def take(self, prompts: list[int]) -> "RolloutBatch":
        """The groups of these prompts, in this order, without advantages, values and reference log-probs."""
        index = torch.tensor(prompts, device=self.completion_ids.device)
        rows = (index[:, None] * self.group_size + torch.arange(self.group_size, device=index.device)).flatten()
        return RolloutBatch(
            prompt_ids=self.prompt_ids[index],
            prompt_mask=self.prompt_mask[index],
            completion_ids=self.completion_ids[rows],
            completion_mask=self.completion_mask[rows],
            action_mask=self.action_mask[rows],
            behaviour_logprobs=self.behaviour_logprobs[rows],
            finish_reasons=[self.finish_reasons[row] for row in rows.tolist()],
            rows=[self.rows[prompt] for prompt in prompts],
            rewards={name: values[rows.to(values.device)] for name, values in self.rewards.items()},
            judges=dict(self.judges),
            failures={name: values[rows.to(values.device)] for name, values in self.failures.items()},
            own_first=None if self.own_first is None else self.own_first[rows],
            turns=None if self.turns is None else self.turns.take(rows),
            decoder=self.decoder,
            _completions=None if self._completions is None else [self._completions[row] for row in rows.tolist()],
        )

    def cut(self, limits: Int[Tensor, "rows"]) -> "RolloutBatch":
        """The batch with every completion cut to at most its limit of tokens; a cut one finishes as too long."""
        kept = self.completion_mask & (
            torch.arange(self.completion_mask.shape[1], device=limits.device) < limits[:, None]
        )
        is_cut = (kept.sum(1) < self.lengths).tolist()
        return replace(
            self,
            completion_mask=kept,
            action_mask=self.action_mask & kept,
            finish_reasons=["length" if c else reason for c, reason in zip(is_cut, self.finish_reasons, strict=True)],
            own_first=None if self.own_first is None else torch.minimum(self.own_first, limits),
            turns=None if self.turns is None else self.turns.cut(kept),
            _completions=None,
        )

    def single(self, row: int) -> "RolloutBatch":
        """One completion with its prompt, as a reward needs it; its text is not decoded again."""
        prompt, only_row = row // self.group_size, slice(row, row + 1)
        return RolloutBatch(
            prompt_ids=self.prompt_ids[prompt : prompt + 1],
            prompt_mask=self.prompt_mask[prompt : prompt + 1],
            completion_ids=self.completion_ids[only_row],
            completion_mask=self.completion_mask[only_row],
            action_mask=self.action_mask[only_row],
            behaviour_logprobs=self.behaviour_logprobs[only_row],
            finish_reasons=self.finish_reasons[only_row],
            rows=[self.rows[prompt]],
            own_first=None if self.own_first is None else self.own_first[only_row],
            turns=None
            if self.turns is None
            else self.turns.take(torch.tensor([row], device=self.completion_ids.device)),
            decoder=self.decoder,
            _completions=self.completions[only_row],
        )

    def of_turn(self, turn: int) -> "tuple[RolloutBatch, Bool[Tensor, 'rows']]":
        """(the turns with this number as completions of the prompts, whether a row has it).

        A row without it, which may not be empty, is one token that it does not need.
        """
        assert self.turns is not None
        chosen = self.turns.number == turn
        exists = chosen.any(1)
        chosen[:, 0] |= ~exists
        order = (~chosen).long().argsort(dim=1, stable=True)[:, : int(chosen.sum(1).max())]
        mask = chosen.gather(1, order)
        part = replace(
            self,
            completion_ids=self.completion_ids.gather(1, order),
            completion_mask=mask,
            action_mask=mask,
            behaviour_logprobs=self.behaviour_logprobs.gather(1, order),
            rewards={},
            advantages=None,
            reference_logprobs=None,
            own_first=None,
            turns=None,
            _completions=None,
        )
        return part, exists

    @property
    def group_size(self) -> int:
        return self.completion_ids.shape[0] // self.prompt_ids.shape[0]

    @property
    def groups(self) -> Int[Tensor, "rows"]:
        """Index of each row's prompt."""
        prompts = torch.arange(self.prompt_ids.shape[0], device=self.completion_ids.device)
        return prompts.repeat_interleave(self.group_size)

    @property
    def lengths(self) -> Int[Tensor, "rows"]:
        """Completion tokens of each row, the end token included."""
        return self.completion_mask.sum(1)

    @property
    def truncated(self) -> Bool[Tensor, "rows"]:
        """Whether each completion was cut off at its maximum length."""
        return torch.tensor([reason == "length" for reason in self.finish_reasons], device=self.completion_ids.device)

    @property
    def completions(self) -> list[str]:
        """The texts of the completions, decoded when first needed."""
        if self._completions is None:
            if self.decoder is None:
                raise ValueError("this batch has no decoder, so its completions cannot be decoded; set batch.decoder.")
            self._completions = self.decoder(self.completion_ids, self.completion_mask)
        return self._completions

    @property
    def turn_texts(self) -> list[list[str]]:
        """The texts of each row's turns, without the environment's; a completion without one is one turn."""
        if self.turns is None:
            return [[text] for text in self.completions]
        assert self.decoder is not None
        number, counts = self.turns.number, self.turns.counts.tolist()
        decoded = [self.decoder(self.completion_ids, number == turn) for turn in range(max(counts))]
        return [[texts[row] for texts in decoded[:count]] for row, count in enumerate(counts)]

    @property
    def opened(self) -> list[bool]:
        """Whether the prompt of each row ends in an open think block, as the templates of reasoning models make it."""
        assert self.decoder is not None
        texts = self.decoder(self.prompt_ids, self.prompt_mask)
        return [ends_open(text) for text in texts for _ in range(self.group_size)]

    @property
    def messages(self) -> list[tuple[str, bool]]:
        """(text, whether it begins within an open think block) of each row's last message.

        This is the whole completion, the output of tools included, unless an environment began another message.
        """
        whole = list(zip(self.completions, self.opened, strict=True))
        if self.turns is None or not self.turns.message_start.any():
            return whole
        assert self.decoder is not None
        place = torch.arange(self.completion_ids.shape[1], device=self.completion_ids.device)
        last = place >= self.turns.message_start[:, None]
        texts = self.decoder(self.completion_ids, self.completion_mask & last)
        before = self.decoder(self.completion_ids, self.completion_mask & ~last)
        begun = self.turns.message_start.tolist()
        return [(texts[row], ends_open(before[row])) if begun[row] else whole[row] for row in range(len(whole))]

    def column(self, name: str) -> list[Any]:
        """A data column, one value per completion; None where a row lacks it."""
        return [row.get(name) for row in self.rows for _ in range(self.group_size)]

    def prompt_groups(self, index: Int[Tensor, "selected"]) -> PromptGroups:
        """The rows with these indices and their prompts, without columns that only pad."""
        prompts, owner = torch.unique(index // self.group_size, return_inverse=True)
        ids, mask = self.prompt_ids[prompts], self.prompt_mask[prompts]
        first, width = int(mask.long().argmax(1).min()), max(1, int(self.lengths[index].max()))
        return PromptGroups(
            ids[:, first:],
            mask[:, first:],
            owner,
            self.completion_ids[index, :width],
            self.completion_mask[index, :width],
        )
