"""A text encoder whose vectors have length 1, as a folder that transformers and sentence-transformers load."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AddedToken

from policies.encoder import Pooling, TextEncoder
from policies.modes import evaluation_mode
from policies.params import PolicyParams
from policies.prompt_encoding import encode_content

#: our name of a pooling -> sentence-transformers' key
POOLING_KEYS = {"first": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}


class Embedder(TextEncoder):
    """Unit vectors of texts.

    Args:
        params: the backbone. pooling, bidirectional: as in `TextEncoder`.
        instruction: text before every query; passages have none.
        domain_words: words that become tokens of their own, as in `add_words`.
    """

    def __init__(
        self,
        params: PolicyParams,
        pooling: Pooling = "last",
        bidirectional: bool = False,
        instruction: str = "",
        domain_words: Iterable[str] = (),
    ) -> None:
        self.instruction, self.domain_words = instruction, tuple(domain_words)
        super().__init__(params, pooling, bidirectional)

    def prepare(self) -> None:
        add_words(self.tokenizer, self.backbone, self.domain_words)

    def forward(self, ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> Float[Tensor, "rows width"]:
        """Unit vectors of sequences padded on the right."""
        return normalize(super().forward(ids, mask), dim=1)

    def vectors(self, texts: list[str], max_length: int, queries: bool = False) -> Float[Tensor, "rows width"]:
        """Unit vectors of queries, which get the instruction, or of passages."""
        texts = [self.instruction + text for text in texts] if queries else texts
        vectors: Tensor = self(*self.encode(texts, max_length))
        return vectors

    @torch.no_grad()
    def embed(
        self, texts: list[str], max_length: int, queries: bool = False, batch: int = 64
    ) -> Float[Tensor, "rows width"]:
        """`vectors` in evaluation mode, without gradient, a batch at a time."""
        with evaluation_mode(self):
            parts = [
                self.vectors(texts[start : start + batch], max_length, queries) for start in range(0, len(texts), batch)
            ]
        return torch.cat(parts)

    def save(self, folder: str | Path, max_length: int | None = None) -> None:
        """Write a folder for `transformers.AutoModel`, `Embedder` and sentence-transformers.

        Args:
            max_length: longest text in tokens that sentence-transformers shall read.
        """
        folder = Path(folder)
        super().save(folder)
        parts = ("Transformer", "Pooling", "Normalize")
        paths = ("", "1_Pooling", "2_Normalize")
        modules = [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{part}"}
            for place, (part, path) in enumerate(zip(parts, paths, strict=True))
        ]
        pooling: dict[str, Any] = {key: name == self.pooling for name, key in POOLING_KEYS.items()}
        files = {
            "modules.json": modules,
            "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
            "config_sentence_transformers.json": {
                "prompts": {"query": self.instruction, "document": ""},
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
            "1_Pooling/config.json": {"word_embedding_dimension": self.width, "include_prompt": True, **pooling},
        }
        (folder / "2_Normalize").mkdir(exist_ok=True)
        (folder / "1_Pooling").mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=1))


def split_words(tokenizer: Any, texts: list[str], number: int) -> list[str]:
    """The `number` most frequent words of the texts that the tokenizer splits into several tokens.

    Words are what stands between spaces, without punctuation at their ends; of equally frequent words the first by
    alphabet.
    """
    counts = Counter(word.strip(".,;:!?()[]\"'") for text in texts for word in text.split())
    ordered = sorted((word for word in counts if word), key=lambda word: (-counts[word], word))
    chosen: list[str] = []
    for word in ordered:
        if len(chosen) == number:
            break
        if len(encode_content(tokenizer, word, ())) > 1:
            chosen.append(word)
    return chosen


def word_tokens(words: Iterable[str]) -> list[AddedToken]:
    """Words as tokens that stand for themselves only where no letter precedes or follows."""
    return [AddedToken(word, single_word=True, normalized=False) for word in words]


@torch.no_grad()
def add_words(tokenizer: Any, model: Any, words: Iterable[str]) -> None:
    """Add words as tokens; the vector of each begins as the mean of those of the tokens that it had before."""
    parts = {word: encode_content(tokenizer, word, ()) for word in words}
    if not parts:
        return
    tokenizer.add_tokens(word_tokens(parts))
    before = model.get_input_embeddings().weight
    rows = [before[ids].mean(0) for ids in parts.values()]
    if (size := len(tokenizer)) > len(before):
        model.resize_token_embeddings(size, mean_resizing=False)
    weight = model.get_input_embeddings().weight
    for word, row in zip(parts, rows, strict=True):
        weight[tokenizer.convert_tokens_to_ids(word)] = row


def fertility(tokenizer: Any, texts: list[str]) -> float:
    """Tokens per word of the texts, where words are what stands between spaces."""
    tokens = sum(len(encode_content(tokenizer, text, ())) for text in texts)
    return tokens / max(1, sum(len(text.split()) for text in texts))
