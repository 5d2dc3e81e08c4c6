"""A causal language model with its tokenizer, its LoRA adapter if any, and its reference."""

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig

from policies.adapters import acting_weights, with_adapter, without_wrapper
from policies.compute import chosen_precision, computing
from policies.config_checks import context_of
from policies.gathering import gathered_weights, sharded_modules
from policies.given import score_completions
from policies.loading import load_model
from policies.logprobs import LogprobsAndEntropies
from policies.modes import checkpoint_layers, evaluation_mode, set_mode
from policies.packing import SHARED_PREFIX, PromptGroups, can_pack
from policies.params import PolicyParams
from policies.prompt_encoding import Prompt, encode_prompt
from policies.realign import realign
from policies.start_checks import WAYS, agree_on_scoring, way_of_scoring
from policies.tokenizer import check_known, load_tokenizer, open_thinking
from support.errors import ConfigError
from support.seeding import isolated_rng


class Policy(nn.Module):
    """The trained weights, and the frozen reference weights that they are compared with.

    Args:
        params: the model to load.
        with_reference: keep a reference. Under LoRA it is the model with its adapter off until the first reset;
            otherwise it is a frozen copy.
    """

    def __init__(self, params: PolicyParams, with_reference: bool = False) -> None:
        super().__init__()
        self.params = params
        self.tokenizer = load_tokenizer(params.model, params.chat_template_args)
        if params.open_thinking:
            open_thinking(self.tokenizer)
        self.model = load_model(params)
        generation = self.model.generation_config
        eos = generation.eos_token_id if generation is not None else None
        #: the end tokens that the model's own folder names
        self.model_eos_ids = sorted({*(eos if isinstance(eos, list) else [eos])} - {None})
        self.eos_token_ids = sorted({self.tokenizer.eos_token_id, *self.model_eos_ids})
        self.pad_token_id = self.tokenizer.pad_token_id
        ends = [self.pad_token_id, *self.eos_token_ids]
        check_known(self.tokenizer, ends, self.vocabulary, f"the tokenizer of {params.model}")
        # The makers' sampling defaults would be written into every exported model's config and warn there.
        self.model.generation_config = GenerationConfig(eos_token_id=self.eos_token_ids, pad_token_id=self.pad_token_id)
        if params.lora is not None:
            self.model = with_adapter(self.model, params.lora)
        #: precision of the matrix products, and the measurement that chose it
        self.compute, self.compute_probe = chosen_precision(params, self.bare.config)
        #: attention of the model's own choice
        self.attention = self.bare.config._attn_implementation
        self.packed = params.packing and can_pack(self.bare)
        if self.packed:
            self.bare.set_attn_implementation(SHARED_PREFIX)
        #: one of policies/start_checks.WAYS, once compared, and whether all processes go this way
        self.scoring: str | None = None
        self.scoring_agreed = False
        self.with_reference, self.is_whole, self.version_in_shards = with_reference, False, 0
        self.reference: nn.Module | None = None
        self.value_head: nn.Module | None = None  # see policies/value_heads.py
        if params.lora is None and with_reference:
            self.reference = copy.deepcopy(self.model).eval().requires_grad_(False)
        realign(self.bare, params)
        if params.gradient_checkpointing:
            checkpoint_layers(self.bare, params.dropout)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode: in training mode, only the dropout acts that `params` asks for; a reference has none."""
        super().train(mode)
        set_mode(self.model, mode, self.params.dropout)
        if self.reference is not None:
            self.reference.eval()
        return self

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def bare(self) -> Any:
        """The transformers model, with any adapter's layers in it but without peft's wrapper."""
        return without_wrapper(self.model)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights with their names in an exported folder, adapters merged."""
        return acting_weights(self.bare)

    @property
    def version(self) -> int:
        """A number that changes whenever a weight does."""
        if self.is_whole and isinstance(self, FSDPModule):
            return self.version_in_shards
        return sum(parameter._version for parameter in self.model.parameters())

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens, if the model states one."""
        return context_of(self.bare.config)[0]

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model's embedding knows."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises ConfigError for a token that the model's embedding does not have."""
        ids = encode_prompt(self.tokenizer, prompt)
        check_known(self.tokenizer, ids, self.vocabulary, f"the prompt {str(prompt)[:60]!r}")
        return ids

    def decode(self, ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> list[str]:
        """Texts without the tokens that end or pad; markers such as </think> stay, since rewards read them."""
        drop = {*self.eos_token_ids, self.pad_token_id}
        kept = [
            [t for t, m in zip(row, keep, strict=True) if m and t not in drop]
            for row, keep in zip(ids.tolist(), mask.tolist(), strict=True)
        ]
        texts: list[str] = self.tokenizer.batch_decode(kept, skip_special_tokens=False)
        return texts

    def logprobs(
        self, groups: PromptGroups, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> LogprobsAndEntropies:
        """(log-probs, entropies) of the completion tokens under the policy, at this temperature.

        Entropies carry a gradient only with `entropy_gradient`. Values outside the completion mask are arbitrary.
        """
        self.check(groups)
        agree_on_scoring(self, in_shards=not self.is_whole)
        result: LogprobsAndEntropies = self(self._logprobs, self.model, groups, temperature, entropy_gradient)
        return result

    def check(self, prompts: PromptGroups | list[list[int]]) -> None:
        """Choose, once, how completions are scored, by a comparison on the longest of the prompts.

        Raises:
            ConfigError: the model cannot be a policy.
        """
        if self.scoring is None:
            if isinstance(prompts, PromptGroups):
                prompts = [
                    ids[mask].tolist() for ids, mask in zip(prompts.prompt_ids, prompts.prompt_mask, strict=True)
                ]
            self.scoring = self(way_of_scoring, self, max(prompts, key=len))

    score = score_completions

    def forward(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        """Call `compute` in the policy's precision. Every gradient comes from here, where shards are gathered."""
        with computing(self):
            return compute(*arguments)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Gather all weights on every process, for code that reads them directly; a reference's weights stay in shards.

        Gathering needs every process, so all of them must enter. Does nothing for weights that are not in shards, or
        within another `whole`.
        """
        modules = [] if self.is_whole else sharded_modules(self, without=self.reference)
        if modules:
            self.version_in_shards = self.version  # gathered copies do not count their changes
        was_whole, self.is_whole = self.is_whole, True
        try:
            with gathered_weights(modules, root=self):
                yield
        finally:
            self.is_whole = was_whole

    @torch.no_grad()
    def reference_logprobs(self, groups: PromptGroups, temperature: float = 1.0) -> Float[Tensor, "rows time"]:
        """Log-probs of the completion tokens under the reference; values outside the completion mask are arbitrary."""
        self.check(groups)
        agree_on_scoring(self, in_shards=True)
        with self.as_reference() as model:
            result: LogprobsAndEntropies = self(self._logprobs, model, groups, temperature)
        return result[0]

    def _logprobs(
        self, model: nn.Module, groups: PromptGroups, temperature: float, entropy_gradient: bool = False
    ) -> LogprobsAndEntropies:
        assert self.scoring is not None
        return WAYS[self.scoring][0](model, groups, temperature, entropy_gradient)

    @contextmanager
    def as_reference(self) -> Iterator[nn.Module]:
        """Context in which the model that it gives computes as the reference."""
        self._require_reference()
        if self.reference is not None:
            yield self.reference
            return
        with evaluation_mode(self.model):  # no adapter dropout in a reference
            try:
                if "reference" in self.model.peft_config:
                    # inference_mode keeps the reference frozen; without it peft would make it the trainable adapter.
                    self.model.set_adapter("reference", inference_mode=True)
                    yield self.model
                else:
                    with self.model.disable_adapter():
                        yield self.model
            finally:
                if "reference" in self.model.peft_config:
                    self.model.set_adapter("default")

    def _require_reference(self) -> None:
        if not self.with_reference:
            raise ConfigError(
                "this policy has no reference, because its module was built with kl.coefficient 0. Build the module "
                "with a coefficient above 0, however small, if a callback raises it later; for a policy of your own, "
                "Policy(..., with_reference=True)."
            )

    @torch.no_grad()
    def reset_reference(self) -> None:
        """Make the current policy the reference (ProRL, arXiv 2505.24864)."""
        self._require_reference()
        if self.reference is not None:
            self.reference.load_state_dict(self.model.state_dict())
            return
        self.add_reference_adapter()
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            if ".reference." in name:
                parameter.copy_(parameters[name.replace(".reference.", ".default.")])

    def add_reference_adapter(self) -> None:
        """Add, under LoRA, the second, frozen adapter that holds a reset reference; does nothing if it exists."""
        if "reference" not in self.model.peft_config:
            self.model.add_adapter("reference", copy.deepcopy(self.model.peft_config["default"]))
            self.model.set_adapter("default")
            for name, parameter in self.model.named_parameters():
                if ".reference." in name:
                    parameter.requires_grad_(False)

    def save(self, folder: str | Path) -> None:
        """Write a folder that transformers loads: full weights (adapters merged) and the tokenizer.

        Call it within `whole` if weights may be in shards.
        """
        if self.params.lora is None and not isinstance(self, FSDPModule):
            self.model.save_pretrained(folder)
        else:
            self.bare.save_pretrained(folder, state_dict=dict(self.weights()))
        self.tokenizer.save_pretrained(folder)

    def check_adapter_folder(self) -> None:
        """Save and load the adapter, as peft would later.

        Raises:
            ConfigError: peft does not find all of it under the names that it wrote.
        """
        with tempfile.TemporaryDirectory() as folder, isolated_rng("adapter folder", 0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.save_adapter(folder)
            self.model.load_adapter(folder, "again", torch_device=str(self.device))
            weights = dict(self.model.named_parameters())
            lost = [
                name
                for name, weight in weights.items()
                if ".default" in name and not torch.equal(weight, weights[name.replace(".default", ".again")])
            ]
            self.model.delete_adapter("again")
            self.model.set_adapter("default")
        if lost:
            raise ConfigError(
                f"peft does not read the adapter of {self.params.model} ({type(self.bare).__name__}) back from its "
                f"folder: {len(lost)} of its weights are lost, among them {lost[0]}. Use callbacks.ExportPolicy, or "
                "leave these layers out of policy.lora.target_modules."
            )

    def save_adapter(self, folder: str | Path) -> None:
        """Write the trained adapter as a peft folder, without a reference's adapter.

        Call it within `whole` if weights may be in shards.
        """
        self.model.save_pretrained(folder, selected_adapters=["default"])
