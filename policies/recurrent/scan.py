"""Linear recurrences with a decay per key dimension: token by token, and in chunks.

With queries q, keys k, values v and log-decays a <= 0, all of one head:

    S_t = diag(exp(a_t)) S_{t-1} + k_t^T v_t,    o_t = q_t S_t

Within a chunk, with G_i the sum of the log-decays of its first tokens up to and including i:

    o_i   = (q_i exp(G_i)) S_in + sum_{j <= i} (sum_m q_im k_jm exp(G_im - G_jm)) v_j
    S_out = diag(exp(G_C)) S_in + sum_j (k_j exp(G_C - G_j))^T v_j

With `before`, o_t = q_t S_{t-1}: outputs read the state before it decays and before their own token is written, as in
RWKV. Then G_{i-1} takes the place of G_i in o_i, and the sum is over j < i.

Only differences G_i - G_j <= 0 are exponentiated: exp(-G_j) alone would overflow after a few strong decays.
"""

import torch
from jaxtyping import Float
from torch import Tensor

#: tokens per chunk; the decays of all pairs of a chunk's tokens are held at once
CHUNK = 16

Keys = Float[Tensor, "*batch time keys"]
Values = Float[Tensor, "*batch time values"]
State = Float[Tensor, "*batch keys values"]


def recurrent_scan(
    query: Keys, key: Keys, value: Values, log_decay: Keys, state: State | None = None, before: bool = False
) -> tuple[Values, State]:
    """(outputs, last state), token by token: the definition, and the form for decoding.

    Args:
        state: before the first token; zeros if None.
        before: outputs read the state before their own token.
    """
    if state is None:
        state = value.new_zeros(*key.shape[:-2], key.shape[-1], value.shape[-1])
    outputs = []
    for q, k, v, a in zip(*(part.unbind(-2) for part in (query, key, value, log_decay)), strict=True):
        earlier = state
        state = a.exp()[..., None] * state + k[..., None] * v[..., None, :]
        outputs.append((q[..., None, :] @ (earlier if before else state))[..., 0, :])
    return torch.stack(outputs, -2), state


def chunked_scan(
    query: Keys,
    key: Keys,
    value: Values,
    log_decay: Keys,
    state: State | None = None,
    before: bool = False,
    size: int = CHUNK,
) -> tuple[Values, State]:
    """The same as `recurrent_scan`, by products of matrices within chunks of `size` tokens."""
    if state is None:
        state = value.new_zeros(*key.shape[:-2], key.shape[-1], value.shape[-1])
    time = query.shape[-2]
    q, k, v, a = (_in_chunks(part, size) for part in (query, key, value, log_decay))
    total = a.cumsum(-2)  # G
    read = torch.nn.functional.pad(total, (0, 0, 1, -1)) if before else total  # the sum behind which outputs read
    unseen = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(0 if before else 1)[..., None]
    between = (read[..., :, None, :] - total[..., None, :, :]).masked_fill(unseen, -torch.inf).exp()
    scores = (between * q[..., :, None, :] * k[..., None, :, :]).sum(-1)
    end = total[..., -1:, :]
    added = (k * (end - total).exp()).transpose(-1, -2) @ v
    kept = end.exp().transpose(-1, -2)
    states = []
    for chunk in range(q.shape[-3]):
        states.append(state)
        state = kept[..., chunk, :, :] * state + added[..., chunk, :, :]
    outputs = (q * read.exp()) @ torch.stack(states, -3) + scores @ v
    return outputs.flatten(-3, -2)[..., :time, :], state


def _in_chunks(part: Float[Tensor, "*batch time n"], size: int) -> Float[Tensor, "*batch chunks size n"]:
    """Padded behind with zeros, which neither decay the state nor add to it."""
    padding = -part.shape[-2] % size
    chunks: Tensor = torch.nn.functional.pad(part, (0, 0, 0, padding)).unflatten(-2, (-1, size))
    return chunks
