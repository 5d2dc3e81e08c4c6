"""A backbone that turns a text into one vector: an encoder, the encoder of an encoder-decoder, or a decoder."""

from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

from policies.adapters import acting_weights, with_adapter, without_wrapper
from policies.config_checks import check_length, context_of
from policies.locate import load_pretrained, locate
from policies.modes import checkpoint_layers, set_mode
from policies.params import PolicyParams
from policies.prompt_encoding import encode_content
from policies.tokenizer import check_known, load_tokenizer
from support.errors import ConfigError

Pooling = Literal["first", "mean", "last"]


def pooled(
    hidden: Float[Tensor, "rows time width"], mask: Bool[Tensor, "rows time"], pooling: Pooling
) -> Float[Tensor, "rows width"]:
    """One vector per row of a batch that is padded on the right: its first or last token's, or the mean over its
    tokens.

    Args:
        mask: True for the tokens of a row, False for padding.
    """
    if pooling == "first":
        return hidden[:, 0]
    lengths = mask.sum(1)
    if pooling == "last":  # not -1, which is padding in all rows but the longest
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    return (hidden * mask[..., None]).sum(1) / lengths[:, None]


class TextEncoder(nn.Module):
    """A backbone without output layer, and the tokenizer that surrounds texts with its special tokens.

    Args:
        params: the model. Of an encoder-decoder only the encoder is loaded.
        pooling: how a text's hidden states become one vector. `first` needs a tokenizer that begins texts with a
            special token, or attention in both directions.
        bidirectional: let a decoder's tokens attend to later ones too. Encoders do so anyway.

    Raises:
        ConfigError: a model of another kind, or a pooling that it cannot have.
    """

    def __init__(self, params: PolicyParams, pooling: Pooling, bidirectional: bool = False) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ConfigError(f"pooling is {pooling!r}; set it to one of {', '.join(get_args(Pooling))}.")
        if params.chat_template_args or params.open_thinking:
            raise ConfigError(
                "policy.chat_template_args and policy.open_thinking change chat prompts, and an encoder reads plain "
                "texts; remove them."
            )
        params.refuse_bottom_adapter("an encoder")
        self.params, self.pooling, self.bidirectional = params, pooling, bidirectional
        self.tokenizer = load_tokenizer(params.model, needs_end=False)
        self.backbone = _load_backbone(params)
        self.prepare()
        config = self.backbone.config
        if bidirectional or getattr(config, "is_causal", True) is False:  # also a folder that was saved so
            _attend_to_both_sides(self.backbone)
        self.is_decoder = _is_causal(self.backbone)
        check_known(self.tokenizer, [self.tokenizer.pad_token_id], self.vocabulary, f"the tokenizer of {params.model}")
        self._begin, self._end = _surroundings(self.tokenizer)
        if pooling == "first" and self.is_decoder:
            raise ConfigError(
                f"pooling is first, but the first token of {params.model}, a decoder, knows nothing of the others. Set "
                "it to last or mean, or bidirectional to true."
            )
        self.width = int(config.get_text_config().hidden_size)
        if params.lora is not None:
            self.backbone = with_adapter(self.backbone, params.lora, None)
        if params.gradient_checkpointing:
            checkpoint_layers(without_wrapper(self.backbone), params.dropout)
        self.train()

    def prepare(self) -> None:
        """Change tokenizer and backbone right after they were loaded, before adapters; nothing by default."""

    def train(self, mode: bool = True) -> Self:
        """Set the mode: in training mode, only the dropout acts that `params` asks for."""
        super().train(mode)
        set_mode(self.backbone, mode, self.params.dropout)
        return self

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.backbone.parameters()).device
        return device

    @property
    def bare(self) -> Any:
        """The transformers model, with any adapter's layers in it but without peft's wrapper."""
        return without_wrapper(self.backbone)

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model's embedding knows."""
        return int(self.bare.get_input_embeddings().weight.shape[0])

    def ids_of(self, text: str, max_length: int) -> list[int]:
        """Token ids of a text with the tokenizer's special tokens around it, cut to max_length.

        Spellings of special tokens inside the text stay text.
        """
        room = max_length - len(self._begin) - len(self._end)
        return [*self._begin, *encode_content(self.tokenizer, text, ())[:room], *self._end]

    def encode(self, texts: list[str], max_length: int) -> tuple[Int[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
        """(ids, mask) of texts, padded on the right, each cut to max_length tokens.

        Raises:
            ConfigError: max_length leaves no room for a text, or is more than the model's context, and for a text
                without tokens.
        """
        if max_length <= len(self._begin) + len(self._end):
            raise ConfigError(
                f"max_length is {max_length}, of which the tokenizer's special tokens take "
                f"{len(self._begin) + len(self._end)}; raise model.max_length."
            )
        sequences = [self.ids_of(text, max_length) for text in texts]
        if (empty := next((i for i, ids in enumerate(sequences) if not ids), None)) is not None:
            raise ConfigError(f"the text {texts[empty]!r} has no tokens; remove its row.")
        width = max(map(len, sequences))
        if self.longest() is not None:
            check_length(self.bare.config, width, "a text")
        ids = torch.full((len(texts), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            check_known(self.tokenizer, sequence, self.vocabulary, f"the text {texts[row][:60]!r}")
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = True
        return ids.to(self.device), mask.to(self.device)

    def forward(self, ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> Float[Tensor, "rows width"]:
        """One vector per row in float32."""
        hidden = self.backbone(input_ids=ids, attention_mask=mask.long(), **self._options).last_hidden_state
        return pooled(hidden.float(), mask, self.pooling)

    @property
    def _options(self) -> dict[str, bool]:
        """A decoder fills a cache for tokens to come unless it is told otherwise."""
        return {"use_cache": False} if hasattr(self.bare.config, "use_cache") and _has_cache(self.bare) else {}

    def save(self, folder: Any) -> None:
        """Write a folder that `transformers.AutoModel` loads (adapters merged), with the tokenizer."""
        self.bare.save_pretrained(folder, state_dict=dict(acting_weights(self.bare)))
        self.tokenizer.save_pretrained(folder)

    def longest(self) -> int | None:
        """Longest sequence in tokens, if the model states one."""
        return None if self.bare.config.model_type in RELATIVE else context_of(self.bare.config)[0]


#: kinds of models whose positions are relative, so that the length in their configuration is no limit
RELATIVE = ("t5", "mt5", "umt5")
#: parts of encoders that no loss here reaches, which some checkpoints lack
_UNUSED = ("pooler",)


def _load_backbone(params: PolicyParams) -> Any:
    """The model without output layer, or the encoder of an encoder-decoder."""
    config = AutoConfig.from_pretrained(locate(params.model), trust_remote_code=False)
    kind = AutoModel
    # A saved encoder says that it is no encoder-decoder, but its type would load one.
    is_part = any(str(name).endswith("EncoderModel") for name in config.architectures or ())
    if config.is_encoder_decoder or is_part:
        kind = AutoModelForTextEncoding
        if type(config) not in kind._model_mapping:
            raise ConfigError(
                f"{params.model} is an encoder-decoder of the type {config.model_type!r}, whose encoder transformers "
                "does not load by itself; use a model of the T5 family, an encoder or a decoder."
            )
    backbone = load_pretrained(kind, params.model, _UNUSED, dtype=getattr(torch, params.dtype))
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # weights without a gradient, for which processes would wait
    return backbone


def _is_causal(backbone: Any) -> bool:
    """Whether the state of a token depends only on earlier tokens."""
    config = backbone.config
    if config.is_encoder_decoder or getattr(config, "is_causal", True) is False:
        return False
    attention = [module.is_causal for module in backbone.modules() if hasattr(module, "is_causal")]
    return any(attention) if attention else bool(getattr(config, "is_decoder", False))


def _has_cache(backbone: Any) -> bool:
    return _is_causal(backbone) or getattr(backbone.config, "is_causal", True) is False


def _attend_to_both_sides(backbone: Any) -> None:
    """Let a decoder attend in both directions; its saved configuration says so too."""
    backbone.config.is_causal = False
    for module in backbone.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False


def _surroundings(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and behind a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    inside = [place for place, flag in enumerate(special) if not flag]
    return (ids[: inside[0]], ids[inside[-1] + 1 :]) if inside else (ids, [])
