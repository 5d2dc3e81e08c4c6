"""RWKV-6 (arXiv 2404.05892): a recurrent model with a decay per channel that depends on the token.

Time mixing, with x the normalised input and x' the token before it, d = x' - x, per head a state S of size x size:

    m = tanh((x + d mu_x) A) B                                  five low-rank outputs: for w, k, v, r and g
    x_w, x_k, x_v, x_r, x_g = x + d (mu_* + m_*)
    w = exp(-exp(w_0 + tanh(x_w C) D));  g = SiLU(W_g x_g)
    y_t = r_t (S_{t-1} + diag(u) k_t^T v_t);  S_t = diag(w_t) S_{t-1} + k_t^T v_t
    out = W_o (GroupNorm(y) g)                                  a group is a head

Channel mixing: sigmoid(W_r x_r) * W_v relu(W_k x_k)^2, with x_k, x_r = x + d mu_*.
OnlySportsLM is this model with 20 layers of width 640: 196,323,840 weights.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from policies.recurrent.model import RecurrentForCausalLM, RecurrentLayer, RecurrentModel, RecurrentPreTrained
from policies.recurrent.scan import chunked_scan, recurrent_scan
from policies.recurrent.state import Tokens, tail

State = dict[str, Tensor]


class RWKV6Config(PreTrainedConfig):
    """Sizes of an RWKV-6 model; the defaults are OnlySportsLM's.

    Args:
        head_size: of the heads of time mixing.
        intermediate_size: of channel mixing; 3.5 times hidden_size, rounded down to 32, if None.
        mix_rank, decay_rank: of the low-rank maps A B and C D.
    """

    model_type = "rwkv6_torch"

    vocab_size: int = 65536
    hidden_size: int = 640
    num_hidden_layers: int = 20
    head_size: int = 64
    intermediate_size: int | None = None
    mix_rank: int = 32
    decay_rank: int = 64
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = int(3.5 * self.hidden_size) // 32 * 32
        if self.hidden_size % self.head_size:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of head_size {self.head_size}; change one of the "
                "two."
            )
        super().__post_init__(**kwargs)

    @property
    def num_attention_heads(self) -> int:
        """Number of heads of time mixing."""
        return self.hidden_size // self.head_size


def _shift(x: Tensor, past: Tensor | None) -> Tensor:
    """The difference from each token to the token before it; zeros stand before the first."""
    before = torch.zeros_like(x[:, :1]) if past is None else past.to(x.dtype)
    return torch.cat([before, x[:, :-1]], 1) - x


class TimeMixing(nn.Module):
    """The recurrence of the module's docstring."""

    def __init__(self, config: RWKV6Config) -> None:
        super().__init__()
        width, rank = config.hidden_size, config.mix_rank
        self.heads, self.size = config.num_attention_heads, config.head_size
        self.mix_x, self.mix = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(5, width))
        self.mix_down, self.mix_up = (
            nn.Parameter(torch.zeros(width, 5 * rank)),
            nn.Parameter(torch.zeros(5, rank, width)),
        )
        self.decay, self.bonus = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(self.heads, self.size))
        self.decay_down = nn.Parameter(torch.zeros(width, config.decay_rank))
        self.decay_up = nn.Parameter(torch.zeros(config.decay_rank, width))
        self.r_proj, self.k_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.v_proj, self.g_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.GroupNorm(self.heads, width, eps=64e-5)

    def forward(
        self, x: Float[Tensor, "rows time width"], tokens: Tokens, state: State | None
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        past = None if state is None else state["time"]
        d = _shift(x, past)
        low = torch.tanh((x + d * self.mix_x) @ self.mix_down).unflatten(-1, (5, -1))
        mixed = x[:, :, None] + d[:, :, None] * (self.mix + torch.einsum("btsr,srw->btsw", low, self.mix_up))
        x_w, x_k, x_v, x_r, x_g = mixed.unbind(2)
        log_decay = -(self.decay + torch.tanh(x_w @ self.decay_down) @ self.decay_up).float().exp()
        r, k, v = (self._by_head(part) for part in (self.r_proj(x_r), self.k_proj(x_k), self.v_proj(x_v)))
        written, a = k, self._by_head(log_decay)
        if tokens.valid is not None:  # padding neither decays the state nor is written
            written = written.masked_fill(~tokens.valid[:, None, :, None], 0.0)
            a = a.masked_fill(~tokens.valid[:, None, :, None], 0.0)
        scan = recurrent_scan if x.shape[1] == 1 else chunked_scan
        with torch.autocast(x.device.type, enabled=False):
            y, memory = scan(r, written, v, a, None if state is None else state["memory"], before=True)
            y = y + (r * self.bonus.float()[:, None] * k).sum(-1, keepdim=True) * v
        y = self.norm(y.transpose(1, 2).flatten(0, 1).flatten(1).to(self.norm.weight.dtype))
        out = self.o_proj(y.unflatten(0, x.shape[:2]) * F.silu(self.g_proj(x_g)))
        return out, {"time": tail(past, x, tokens.lengths, 1), "memory": memory}

    def _by_head(self, x: Tensor) -> Float[Tensor, "rows heads time size"]:
        heads: Tensor = x.float().unflatten(-1, (self.heads, self.size))
        return heads.transpose(1, 2)


class ChannelMixing(nn.Module):
    """The MLP of RWKV, which sees the token before."""

    def __init__(self, config: RWKV6Config) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        width = config.hidden_size
        self.mix_k, self.mix_r = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.k_proj = nn.Linear(width, config.intermediate_size, bias=False)
        self.r_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(self, x: Tensor, tokens: Tokens, state: State | None) -> tuple[Tensor, State]:
        past = None if state is None else state["channel"]
        d = _shift(x, past)
        inner = F.relu(self.k_proj(x + d * self.mix_k)) ** 2
        out = torch.sigmoid(self.r_proj(x + d * self.mix_r)) * self.v_proj(inner)
        return out, {"channel": tail(past, x, tokens.lengths, 1)}


class RWKV6Layer(RecurrentLayer):
    """Time mixing and channel mixing.

    Args:
        number: of the layer, which its first weights depend on.
    """

    def __init__(self, config: RWKV6Config, number: int) -> None:
        super().__init__()
        self.number, width, epsilon = number, config.hidden_size, config.layer_norm_epsilon
        self.time_norm, self.channel_norm = nn.LayerNorm(width, eps=epsilon), nn.LayerNorm(width, eps=epsilon)
        self.time, self.channel = TimeMixing(config), ChannelMixing(config)
        self.time.number = self.channel.number = number  # type: ignore[assignment]

    def initial_state(self, rows: int, like: Tensor) -> State:
        heads, size = self.time.heads, self.time.size
        return {
            "time": like.new_zeros(rows, 1, heads * size),
            "channel": like.new_zeros(rows, 1, heads * size),
            "memory": torch.zeros(rows, heads, size, size, device=like.device),
        }

    def forward(
        self, hidden: Float[Tensor, "rows time width"], tokens: Tokens, state: State | None = None
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        mixed, after = self.time(self.time_norm(hidden), tokens, state)
        hidden = hidden + mixed
        inner, channel = self.channel(self.channel_norm(hidden), tokens, state)
        return hidden + inner, after | channel


class RWKV6PreTrained(RecurrentPreTrained):
    """The initialisation of RWKV's code: matrices orthogonal, outputs zero, mixing and decays by channel and depth."""

    config_class = RWKV6Config
    config: RWKV6Config
    _no_split_modules = ["RWKV6Layer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        width, layers = self.config.hidden_size, self.config.num_hidden_layers
        if isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -1e-4, 1e-4)
        elif isinstance(module, nn.Linear) and module.out_features == self.config.vocab_size:
            init.orthogonal_(module.weight, gain=0.5 * math.sqrt(self.config.vocab_size / width))
        if not isinstance(module, TimeMixing | ChannelMixing):
            return
        number: Any = module.number
        deep, shallow = number / max(layers - 1, 1), 1 - number / layers
        channel = torch.arange(width, device=next(module.parameters()).device) / width
        gains = {"k_proj": 0.1, "g_proj": 0.1} if isinstance(module, TimeMixing) else {"r_proj": 0.0, "v_proj": 0.0}
        for name, part in module.named_children():
            if isinstance(part, nn.Linear):
                gain = math.sqrt(max(1.0, part.out_features / part.in_features)) * gains.get(name, 1.0)
                if gain and name != "o_proj":
                    init.orthogonal_(part.weight, gain=gain)
                else:
                    init.zeros_(part.weight)
        if isinstance(module, ChannelMixing):
            init.copy_(module.mix_k, 1 - channel**shallow)
            init.copy_(module.mix_r, 1 - channel**shallow)
            return
        plain, slow = 1 - channel**shallow, 1 - channel ** (0.5 * shallow)
        init.copy_(module.mix_x, plain)
        init.copy_(module.mix, torch.stack([plain, plain, plain - 0.3 * deep, slow, slow]))
        for low in (module.mix_up, module.decay_up):
            init.uniform_(low, -0.01, 0.01)
        for low in (module.mix_down, module.decay_down):
            init.zeros_(low)
        place = torch.arange(width, device=channel.device)
        along = place / max(width - 1, 1)
        init.copy_(module.decay, -6 + 5 * along ** (0.7 + 1.3 * deep))
        init.copy_(module.bonus, (deep * (1 - along) + 0.1 * ((place + 1) % 3 - 1)).view_as(module.bonus))


class RWKV6Model(RWKV6PreTrained, RecurrentModel):
    """RWKV-6 without its output layer."""

    def layer(self, config: RWKV6Config, number: int) -> RWKV6Layer:
        return RWKV6Layer(config, number)

    def norms(self, config: RWKV6Config) -> tuple[nn.Module, nn.Module]:
        sizes = config.hidden_size, config.layer_norm_epsilon
        return nn.LayerNorm(sizes[0], eps=sizes[1]), nn.LayerNorm(sizes[0], eps=sizes[1])


class RWKV6ForCausalLM(RWKV6PreTrained, RecurrentForCausalLM):
    """RWKV-6 as a causal language model of transformers."""

    body = RWKV6Model
