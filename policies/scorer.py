"""A scalar head on a language model's backbone: the form of reward and cost models."""

import json
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from policies.adapters import with_adapter
from policies.config_checks import check_length
from policies.locate import load_pretrained, locate
from policies.modes import evaluation_mode, set_mode
from policies.params import PolicyParams
from policies.prompt_encoding import Prompt, encode_content, encode_prompt
from policies.tokenizer import load_tokenizer
from policies.values import zero_head
from support.errors import ConfigError
from support.files import parse_json, weights_fingerprint
from support.identity import identity, tokenizer_identity


class Scorer(nn.Module):
    """A backbone without its output layer, and a linear head that scores the response's last token.

    Args:
        params: a language model to start from (the head starts at zero), or a folder that `save` wrote.
    """

    def __init__(self, params: PolicyParams) -> None:
        super().__init__()
        if params.chat_template_args:
            raise ConfigError(
                "policy.chat_template_args is set for a reward or cost model, whose folder would not keep it; set the "
                "values in the tokenizer's chat template and save the folder."
            )
        if params.compute != "float32":
            raise ConfigError(
                f"policy.compute is {params.compute} for a reward or cost model, which has no log-probs to keep exact; "
                "remove it, and set trainer.precision to bf16-mixed for speed."
            )
        params.refuse_bottom_adapter("a reward or cost model")
        self.params = params
        self.tokenizer = load_tokenizer(params.model)
        # The backbone has the precision of `params`; the head's single output needs float32.
        self.backbone = load_pretrained(AutoModel, params.model, dtype=getattr(torch, params.dtype))
        self.head = zero_head(self.backbone.config)
        saved = Path(locate(params.model)) / "head.safetensors"
        if saved.is_file():
            try:
                self.head.load_state_dict(load_file(saved))
            except (SafetensorError, RuntimeError) as error:
                raise ConfigError(
                    f"the scorer's head {saved} cannot be loaded: {error}; copy the folder again from the run that "
                    "trained it."
                ) from error
        if params.lora is not None:
            self.backbone = with_adapter(self.backbone, params.lora, None)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode: in training mode, only the dropout acts that `params` asks for."""
        super().train(mode)
        set_mode(self.backbone, mode, self.params.dropout)
        return self

    def forward(self, ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> Float[Tensor, "rows"]:
        """Scores of sequences padded on the right."""
        hidden = self.backbone(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
        scores: Tensor = self.head(last.float())
        return scores.squeeze(-1)

    def encode(
        self, prompts: list[Prompt], responses: list[str], finished: list[bool] | None = None
    ) -> tuple[Int[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
        """(ids, mask) of prompt and response; a finished response ends with the end token."""
        sequences = []
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            end = [self.tokenizer.eos_token_id] if finished is None or finished[i] else []
            sequences.append(encode_prompt(self.tokenizer, prompt) + encode_content(self.tokenizer, response) + end)
        width = max(map(len, sequences))
        check_length(self.backbone.config, width, "a prompt with its response")
        device = self.head.weight.device
        ids = torch.full((len(sequences), width), self.tokenizer.pad_token_id, device=device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for i, sequence in enumerate(sequences):
            ids[i, : len(sequence)] = torch.tensor(sequence, device=device)
            mask[i, : len(sequence)] = True
        return ids, mask

    @torch.no_grad()
    def score(
        self, prompts: list[Prompt], responses: list[str], finished: list[bool] | None = None, micro_batch: int = 256
    ) -> Float[Tensor, "rows"]:
        """Scores of responses, computed in evaluation mode."""
        with evaluation_mode(self):
            parts = []
            for start in range(0, len(prompts), micro_batch):
                rows = slice(start, start + micro_batch)
                parts.append(
                    self(*self.encode(prompts[rows], responses[rows], None if finished is None else finished[rows]))
                )
            return torch.cat(parts)

    def identity(self) -> Any:
        """Everything that decides the scores, as plain data; the folder that they were loaded from does not count."""
        config = {name: value for name, value in self.backbone.config.to_dict().items() if name != "_name_or_path"}
        usual = {*vars(nn.Module()), "params", "tokenizer"}
        changed = {name: value for name, value in vars(self).items() if name not in usual}
        hooks = [[*part._forward_pre_hooks.values(), *part._forward_hooks.values()] for part in (self, self.head)]
        weights = [weights_fingerprint(self.state_dict()), weights_fingerprint(self.named_buffers())]
        return [*weights, config, tokenizer_identity(self.tokenizer), identity([changed, hooks])]

    def save(self, folder: str | Path, facts: dict[str, Any]) -> None:
        """Write a folder that `Scorer` loads, with `facts` (held-out accuracies, origin) next to the weights."""
        folder = Path(folder)
        backbone = self.backbone if self.params.lora is None else self.backbone.merge_and_unload()
        backbone.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_file(self.head.state_dict(), folder / "head.safetensors")
        (folder / "facts.json").write_text(json.dumps(facts, indent=1))


def load_scorer(folder: str) -> tuple[Scorer, dict[str, Any]]:
    """A frozen scorer and the facts saved with it. Raises ConfigError for a folder without a trained head."""
    located = Path(locate(folder))
    if not (located / "head.safetensors").is_file():
        raise ConfigError(
            f"{folder} is not a reward or cost model, since it has no head.safetensors; train one with "
            "lightning_modules.RewardModel or CostModel."
        )
    return Scorer(PolicyParams(str(located))).eval().requires_grad_(False), load_facts(folder)


def load_facts(folder: str) -> dict[str, Any]:
    """The facts saved with a scorer: identity, held-out accuracies, fingerprints of its training prompts.

    Empty for a scorer that these modules did not train. Raises ConfigError for a file that is not JSON.
    """
    facts = Path(locate(folder)) / "facts.json"
    try:
        content = parse_json(facts.read_text()) if facts.is_file() else {}
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
        return content
    except ValueError as error:
        raise ConfigError(
            f"{facts} is not valid JSON: {error}; copy the folder again from the run that trained the scorer."
        ) from error
