"""A critic of its own: a scorer that values the state before every token of a completion."""

import warnings
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from policies.adapters import acting_adapters, without_wrapper
from policies.logprobs import packed_states, sequences_by_length
from policies.modes import checkpoint_layers, evaluation_mode
from policies.packing import SHARED_PREFIX, PromptGroups, can_attend
from policies.params import PolicyParams
from policies.scorer import Scorer
from policies.start_checks import FOREIGN, sample_groups
from policies.values import decoder_outputs, token_values
from support.errors import ConfigError
from support.processes import gathered


class ValueModel(Scorer):
    """A backbone with a head whose output at a token is the value of the state before the next one.

    Args:
        params: a language model, whose values start at zero, or the folder of a reward model, whose scores they start
            at.
    """

    def __init__(self, params: PolicyParams) -> None:
        super().__init__(replace(params, chat_template_args={}))  # it reads token ids, not prompts
        body = without_wrapper(self.backbone)
        self.attention = body.config._attn_implementation
        #: how its forward passes are made, once packed ones were compared with unpadded ones
        self.way: str | None = None if params.packing and can_attend(body) else "by_length"
        if self.way is None:
            body.set_attn_implementation(SHARED_PREFIX)
        if params.gradient_checkpointing:
            checkpoint_layers(body, params.dropout)

    def forward(self, groups: PromptGroups) -> Float[Tensor, "rows time one"]:  # type: ignore[override]
        """Values of the state before each completion token; arbitrary outside the completion mask."""
        if self.way is None:
            self.way = self._way(groups)
        return token_values(self.head, self.way, groups, self._outputs(self.way, groups))

    def _outputs(self, way: str, groups: PromptGroups) -> list[Tensor]:
        body = without_wrapper(self.backbone)
        with decoder_outputs(body) as outputs:
            if way == "packed":
                packed_states(body, groups)
            else:
                for _, _, ids in sequences_by_length(groups):
                    body.get_decoder()(input_ids=ids, use_cache=False)
        return outputs

    @torch.no_grad()
    def _way(self, groups: PromptGroups) -> str:
        """packed, where that gives the states of unpadded passes; else by_length, which is reported.

        Where the weights are in shards, all processes call it at their first pass.

        Raises:
            ConfigError: packed passes are not possible, and weights in shards allow no others.
        """
        prompt = groups.prompt_ids[0][groups.prompt_mask[0]].tolist()
        sample = sample_groups(prompt, self.tokenizer.pad_token_id, self.head.weight.device)
        with evaluation_mode(self.backbone), acting_adapters(self.backbone):
            expected = _states("by_length", sample, self._outputs("by_length", sample))
            try:
                states = _states("packed", sample, self._outputs("packed", sample))
                gap = float((states - expected).abs().mean() / expected.abs().mean())
                exact = expected.dtype == torch.float32 and not torch.is_autocast_enabled(expected.device.type)
                problem = "" if gap <= (1e-4 if exact else 0.1) else f"they differ by {gap:.2g} of their size"
            except torch.OutOfMemoryError:
                raise
            except FOREIGN as error:
                problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
        if isinstance(self, FSDPModule):
            problem = next(filter(None, gathered(problem)), "")
        if not problem:
            return "packed"
        name = type(without_wrapper(self.backbone)).__name__
        if isinstance(self, FSDPModule):
            raise ConfigError(
                f"the critic {self.params.model} ({name}) cannot be computed in packed passes ({problem}), which "
                "weights in shards need; set trainer.strategy: ddp, or critic.model to another model."
            )
        without_wrapper(self.backbone).set_attn_implementation(self.attention)
        warnings.warn(
            f"{name}: packed passes of the critic are not possible ({problem}); forwards over prompts of one length "
            "are used instead, slower.",
            stacklevel=2,
        )
        return "by_length"


def _states(way: str, groups: PromptGroups, outputs: list[Tensor]) -> Float[Tensor, "tokens size"]:
    """The states before all completion tokens."""
    states = token_values(torch.nn.Identity(), way, groups, outputs)
    return states[groups.completion_mask]
