"""Rodimus and Rodimus+ (arXiv 2410.06577): a recurrent model whose forgetting and writing are tempered apart.

The mixer, with u the normalised input, S a state of `state_size` x 2d numbers, products of vectors elementwise:

    x, z = W_in u;  c = SiLU(conv(x))                               causal depthwise convolution
    q, k = W_q c, W_k c / |W_k c|
    g = softplus(W_g c + b_g);  tau = sigmoid(W_tau c + b_tau)
    v = sigmoid(W_2 W_1 x + b) x
    S_t = diag(exp(-g_t tau_t)) S_{t-1} + (g_t^tau_t k_t)^T v_t
    y = W_out RMSNorm((state_size^-1/2 q_t S_t + D c_t) SiLU(z))

g -> 0 keeps the state and writes nothing; tau -> 0 keeps it and writes with weight 1, as plain linear attention does.
Rodimus: x + Mix(N x) in every layer. Rodimus+ adds attention to a short window, whose heads share one key (SW-SKA), and
a gated MLP; the attention's output is not itself added to the stream:

    x1 = x + Mix(N x);  x2 = x1 + MLP(N (x1 + Attention(N x1)))
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from policies.recurrent.model import RecurrentForCausalLM, RecurrentLayer, RecurrentModel, RecurrentPreTrained
from policies.recurrent.scan import chunked_scan, recurrent_scan
from policies.recurrent.shared_key import SharedKeyAttention, output_layer
from policies.recurrent.state import Tokens, tail
from support.papers import Paper

#: gain of the Xavier initialisation of queries, keys and gates
GAIN = 2**-2.5


class RodimusConfig(PreTrainedConfig):
    """Sizes of a Rodimus model; the defaults are those of Rodimus+ 1.6B where the sources state them.

    Args:
        block_type: rodimus or rodimus_plus.
        state_size: key dimensions of the recurrent state.
        conv_size: tokens that the convolution sees.
        num_attention_heads, window_size: of the attention of rodimus_plus. A token sees window_size tokens, itself
            included.
        intermediate_size: of the MLP of rodimus_plus; 4/3 of hidden_size, rounded up to 8, if None.
        gates: "tempered" is the paper's. "untempered" fixes tau at 1; "none" neither forgets nor weighs what it writes,
            which is linear attention. Both have the same state and are for comparison.
    """

    model_type = "rodimus_torch"  # "rodimus" is flash-linear-attention's, whose folders have other names of weights

    vocab_size: int = 126464
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    block_type: Literal["rodimus", "rodimus_plus"] = "rodimus"
    state_size: int = 64
    conv_size: int = 4
    num_attention_heads: int = 16
    window_size: int = 1024
    intermediate_size: int | None = None
    gates: Literal["tempered", "untempered", "none"] = "tempered"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 8 * math.ceil(4 * self.hidden_size / 3 / 8)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not num_attention_heads {self.num_attention_heads} times an even "
                "size of a head; change one of the two."
            )
        super().__post_init__(**kwargs)

    @property
    def residuals(self) -> int:
        """Outputs per layer that reach the sum over the layers."""
        return 3 if self.block_type == "rodimus_plus" else 1


class RodimusMixer(nn.Module):
    """The recurrent mixer of the module's docstring."""

    def __init__(self, config: RodimusConfig) -> None:
        super().__init__()
        width, inner, size = config.hidden_size, 2 * config.hidden_size, config.state_size
        self.gates, self.conv_size, self.state_size = config.gates, config.conv_size, size
        self.x_proj, self.z_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.conv_size, groups=inner)
        self.q_proj, self.k_proj = nn.Linear(inner, size, bias=False), nn.Linear(inner, size, bias=False)
        self.g_proj, self.tau_proj = nn.Linear(inner, size), nn.Linear(inner, size)
        rank = max(width // 64, 16)
        self.v_down, self.v_up = nn.Linear(inner, rank, bias=False), nn.Linear(rank, inner)
        self.residual = nn.Parameter(torch.ones(inner))  # D
        self.norm = nn.RMSNorm(inner, eps=config.rms_norm_eps)
        self.out_proj = output_layer(inner, width)

    def initial_state(self, rows: int, like: Tensor) -> dict[str, Tensor]:
        inner = self.x_proj.out_features
        return {
            "convolution": like.new_zeros(rows, self.conv_size - 1, inner),
            "memory": torch.zeros(rows, self.state_size, inner, device=like.device),  # float32 in every precision
        }

    def forward(
        self, hidden: Float[Tensor, "rows time width"], tokens: Tokens, state: dict[str, Tensor] | None = None
    ) -> tuple[Float[Tensor, "rows time width"], dict[str, Tensor]]:
        x, z = self.x_proj(hidden), self.z_proj(hidden)
        past = None if state is None else state["convolution"]
        c = F.silu(self._convolved(x, past))
        log_decay, write = self._gates(c)
        query = self.q_proj(c).float() * self.state_size**-0.5
        key = F.normalize(self.k_proj(c).float(), dim=-1) * write
        value = (torch.sigmoid(self.v_up(self.v_down(x))) * x).float()
        if tokens.valid is not None:  # padding neither decays the state nor is written
            log_decay = log_decay.masked_fill(~tokens.valid[..., None], 0.0)
            key = key.masked_fill(~tokens.valid[..., None], 0.0)
        scan = recurrent_scan if hidden.shape[1] == 1 else chunked_scan
        with torch.autocast(hidden.device.type, enabled=False):
            outputs, memory = scan(query, key, value, log_decay, None if state is None else state["memory"])
        outputs = outputs + self.residual.float() * c.float()
        mixed = self.out_proj(self.norm((outputs * F.silu(z.float())).to(hidden.dtype)))
        return mixed, {"convolution": tail(past, x, tokens.lengths, self.conv_size - 1), "memory": memory}

    def _convolved(self, x: Tensor, past: Tensor | None) -> Tensor:
        """The convolution as a sum of shifted products, several times faster on a CPU than conv1d with groups."""
        before = x.new_zeros(len(x), self.conv_size - 1, x.shape[2]) if past is None else past.to(x.dtype)
        padded, weight, time = torch.cat([before, x], 1), self.conv1d.weight[:, 0], x.shape[1]
        assert self.conv1d.bias is not None
        convolved = torch.zeros_like(x) + self.conv1d.bias
        for shift in range(self.conv_size):
            convolved = torch.addcmul(convolved, padded[:, shift : shift + time], weight[:, shift])
        return convolved

    def _gates(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """(log-decay, weight of what is written), each (rows, time, state size)."""
        if self.gates == "none":
            shape = (*c.shape[:2], self.state_size)
            return torch.zeros(shape, device=c.device), torch.ones(shape, device=c.device)
        g = F.softplus(self.g_proj(c).float())
        if self.gates == "untempered":
            return -g, g
        tau = torch.sigmoid(self.tau_proj(c).float())
        # g^tau has an unbounded gradient at g = 0.
        return -g * tau, (tau * (g + 1e-6).log()).exp()


class RodimusMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: RodimusConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = output_layer(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return out


class RodimusLayer(RecurrentLayer):
    """A layer of Rodimus, or of Rodimus+."""

    def __init__(self, config: RodimusConfig) -> None:
        super().__init__()
        self.plus = config.block_type == "rodimus_plus"
        self.mixer_norm, self.mixer = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps), RodimusMixer(config)
        if self.plus:
            self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.self_attn = SharedKeyAttention(
                config.hidden_size, config.num_attention_heads, config.window_size, config.rope_theta
            )
            self.mlp_norm, self.mlp = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps), RodimusMLP(config)

    def initial_state(self, rows: int, like: Tensor) -> dict[str, Tensor]:
        return self.mixer.initial_state(rows, like) | (self.self_attn.initial_state(rows, like) if self.plus else {})

    def forward(
        self, hidden: Float[Tensor, "rows time width"], tokens: Tokens, state: dict[str, Tensor] | None = None
    ) -> tuple[Float[Tensor, "rows time width"], dict[str, Tensor]]:
        mixed, after = self.mixer(self.mixer_norm(hidden), tokens, state)
        hidden = hidden + mixed
        if not self.plus:
            return hidden, after
        attended, window = self.self_attn(self.attention_norm(hidden), tokens, state)
        inner = self.mlp(self.mlp_norm(hidden + attended))
        return hidden + inner, after | window


class RodimusPreTrained(RecurrentPreTrained):
    """The initialisation, of the authors' code."""

    config_class = RodimusConfig
    config: RodimusConfig
    _no_split_modules = ["RodimusLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and hasattr(module, "adds_to_stream"):
            bound = (module.in_features * self.config.residuals * self.config.num_hidden_layers) ** -0.5
            init.uniform_(module.weight, -bound, bound)
        if isinstance(module, RodimusMixer):  # after its parts, whose general initialisation this replaces
            for part in (module.q_proj, module.k_proj, module.g_proj, module.tau_proj, module.v_down, module.v_up):
                init.xavier_uniform_(part.weight, gain=GAIN)
            like = module.g_proj.bias
            low, high = math.log(1e-3), math.log(1e-1)
            g = torch.empty_like(like).uniform_(low, high).exp()
            init.copy_(like, g + (-torch.expm1(-g)).log())  # softplus of it is g
            init.copy_(module.tau_proj.bias, torch.empty_like(like).uniform_(1 / 16, 0.9).logit())
            init.ones_(module.residual)


class RodimusModel(RodimusPreTrained, RecurrentModel):
    """Rodimus without its output layer."""

    def layer(self, config: RodimusConfig, number: int) -> RodimusLayer:
        return RodimusLayer(config)


class RodimusForCausalLM(RodimusPreTrained, RecurrentForCausalLM):
    """Rodimus or Rodimus+ as a causal language model of transformers."""

    body = RodimusModel


PAPER = Paper(
    name="rodimus",
    title="Rodimus, Rodimus+",
    arxiv="2410.06577",
    idea="a recurrent model with tempered gates, and one with a short window of shared keys: memory that does not grow",
    classes=("policies.RodimusForCausalLM", "policies.RodimusConfig"),
    configs=("rodimus", "rodimus_plus"),
    not_compared="it is a model, which every method can train",
)
