"""The seam for recurrent language models: what transformers, the engine and the updates need of them.

An architecture is a configuration, a layer and two short classes (policies/recurrent/rodimus.py). Its layers are called
as `layer(hidden, tokens, state)` and return the hidden states and the layer's state; everything else is here.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from policies.recurrent.state import RecurrentState, Tokens, arrangement


class RecurrentLayer(GradientCheckpointingLayer):
    """A layer of a recurrent model."""

    def initial_state(self, rows: int, like: Tensor) -> dict[str, Tensor]:
        """The state before the first token: tensors whose first dimension is the rows.

        Args:
            like: a tensor of the device and dtype of the hidden states.
        """
        raise NotImplementedError

    def forward(
        self, hidden: Float[Tensor, "rows time width"], tokens: Tokens, state: dict[str, Tensor] | None = None
    ) -> tuple[Float[Tensor, "rows time width"], dict[str, Tensor]]:
        """(outputs, state behind each row's last token).

        Args:
            state: before the first token; None for the initial one.
        """
        raise NotImplementedError


class RecurrentPreTrained(PreTrainedModel):
    """The base of all classes of an architecture."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)


class RecurrentModel(RecurrentPreTrained):
    """Embedding, layers and final norm.

    Padding may be anywhere, and a row may hold several sequences, told apart by `position_ids` that begin anew at 0:
    no state runs over from one to the next.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embedding_norm, self.norm = self.norms(config)
        self.layers = nn.ModuleList([self.layer(config, number) for number in range(config.num_hidden_layers)])
        self.post_init()

    def layer(self, config: Any, number: int) -> RecurrentLayer:
        """Make the layer with this number."""
        raise NotImplementedError

    def norms(self, config: Any) -> tuple[nn.Module, nn.Module]:
        """(norm behind the embedding, norm behind the last layer)."""
        return nn.Identity(), nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def initial_state(self, rows: int) -> RecurrentState:
        """The state before the first token of this many rows."""
        like = self.embed_tokens.weight
        layers = [cast(RecurrentLayer, layer).initial_state(rows, like) for layer in self.layers]
        return RecurrentState(layers, torch.zeros(rows, dtype=torch.long, device=like.device))

    def forward(
        self,
        input_ids: Int[Tensor, "rows time"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "rows time"] | None = None,
        past_key_values: RecurrentState | None = None,
        inputs_embeds: Float[Tensor, "rows time width"] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of every token, zeros on padding.

        Args:
            attention_mask: 0 on padding; with a state, its last columns count.
            past_key_values: the state that the rows go on from; it is not changed.
            use_cache: return the state behind the last tokens; the configuration's choice if None.
        """
        hidden = self.embedding_norm(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
        mask = None if attention_mask is None else attention_mask[:, -hidden.shape[1] :].bool()
        arranged = arrangement(mask, position_ids, carried=past_key_values is not None)
        if arranged is None:
            tokens = Tokens(torch.full((len(hidden),), hidden.shape[1], device=hidden.device), None, None)
        else:
            hidden = arranged.rows(hidden)
            steps = torch.arange(hidden.shape[1], device=hidden.device)
            tokens = Tokens(arranged.lengths, steps < arranged.lengths[:, None], None)
        if past_key_values is not None:
            tokens.seen = past_key_values.seen
        states = []
        for number, layer in enumerate(self.layers):
            before = None if past_key_values is None else past_key_values.layers[number]
            hidden, after = layer(hidden, tokens, before)
            states.append(after)
        hidden = self.norm(hidden)
        cache = None  # also for rows of several sequences
        wanted = self.config.use_cache if use_cache is None else use_cache
        if wanted and not (arranged is not None and arranged.restarts):
            cache = RecurrentState(states, tokens.lengths if tokens.seen is None else tokens.seen + tokens.lengths)
        hidden = hidden if arranged is None else arranged.back(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cast(Any, cache))


class RecurrentForCausalLM(RecurrentPreTrained, GenerationMixin):
    """A recurrent model with its output layer; `body` is the architecture's RecurrentModel."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    body: type[RecurrentModel]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = self.body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first forward of `generate` makes the state

    def forward(
        self,
        input_ids: Int[Tensor, "rows time"] | None = None,
        labels: Int[Tensor, "rows time"] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token, and the loss if `labels` are given.

        Args:
            logits_to_keep: number of last positions with logits, or their indices; 0 for all.
            kwargs: as in RecurrentModel.
        """
        outputs = self.model(input_ids, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)
