"""Log-probs of given responses under the model that training starts from, computed once and kept in the cache."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from policies import Policy, PolicyParams, PromptGroups
from support.files import atomic_write_bytes, cache_folder, fingerprint, weights_fingerprint
from support.identity import tokenizer_identity
from support.processes import gathered, process_count

Encode = Callable[[Policy, list[dict[str, Any]]], PromptGroups]


@torch.no_grad()
def reference_sums(
    params: PolicyParams,
    rows: list[dict[str, Any]],
    encode: Encode,
    *,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[Any]],
    precision_name: str,
    rank: int,
    rows_at_once: int = 8,
) -> Float[Tensor, "rows responses"]:
    """Sums of the log-probs of each data row's responses, (rows, responses of a row).

    The file in the cache is named by the model's weights, its tokenizer and chat template, the token ids of all rows
    and the precision. All processes must call this; each computes its part.

    Args:
        encode: (policy, data rows) -> their responses, all first ones, then all second ones, ...
        device: on which the model is loaded, beside the trained one and for this call only.
        precision: makes the context that training computes in. precision_name: the trainer's name of it.
        rank: of this process.
        rows_at_once: data rows per forward pass.
    """
    policy = Policy(replace(params, lora=None)).to(device).eval()
    chunks = [rows[start : start + rows_at_once] for start in range(0, len(rows), rows_at_once)]
    encoded = [encode(policy, chunk) for chunk in chunks]
    path = _path(policy, encoded, precision_name)
    stored = _stored(path)
    if all(gathered(stored is not None)):
        assert stored is not None
        return stored
    parts: dict[int, Tensor] = {}
    for number in range(rank, len(chunks), process_count()):
        groups = encoded[number]
        with precision():
            logprobs = policy.logprobs(groups)[0]
        sums = torch.where(groups.completion_mask, logprobs.float(), 0.0).sum(1)
        parts[number] = sums.view(-1, len(chunks[number])).T.cpu()
    everything = {number: part for parts_of_one in gathered(parts) for number, part in parts_of_one.items()}
    sums = torch.cat([everything[number] for number in range(len(chunks))])
    if rank == 0:
        atomic_write_bytes(path, save({"sums": sums.contiguous()}))
    return sums


def _path(policy: Policy, encoded: list[PromptGroups], precision_name: str) -> Path:
    ids = [
        [part[mask].tolist() for part, mask in ((g.prompt_ids, g.prompt_mask), (g.completion_ids, g.completion_mask))]
        + [g.completion_mask.sum(1).tolist(), g.owner.tolist()]
        for g in encoded
    ]
    name = fingerprint(
        [weights_fingerprint(policy.weights()), tokenizer_identity(policy.tokenizer), precision_name, *ids]
    )
    return cache_folder("reference_sums", f"{name}.safetensors")


def _stored(path: Path) -> Tensor | None:
    """The file's sums; None without a readable file."""
    try:
        return load(path.read_bytes())["sums"]
    except (OSError, SafetensorError, KeyError):
        return None
