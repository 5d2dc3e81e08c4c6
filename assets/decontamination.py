"""Problems that share a run of words with a benchmark, which are left out of training data."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from support.prompt_identity import normalised

WORDS = 16


def _words(prompt: Any) -> list[str]:
    """The words and numbers of a prompt; its characters if it has neither."""
    text = normalised(prompt)
    return re.findall(r"\w+", text) or list(text)


def _runs(words: list[str], length: int) -> Iterator[str]:
    for start in range(len(words) - length + 1):
        yield " ".join(words[start : start + length])


class Decontamination:
    """Finds prompts that share `length` words in a row with a benchmark's prompt.

    Case, punctuation and layout do not count. A benchmark's prompt with fewer words is compared as a whole.

    Args:
        prompts: of the benchmarks, texts or chat messages.
        length: number of words.
    """

    def __init__(self, prompts: Iterable[Any], length: int = WORDS) -> None:
        self.length = length
        listed = [_words(prompt) for prompt in prompts]
        self.whole = {" ".join(words) for words in listed}
        self.runs = {run for words in listed for run in _runs(words, length)}

    def shared(self, prompt: Any) -> str:
        """The first words that a prompt shares with a benchmark, "" if it shares none."""
        words = _words(prompt)
        text = " ".join(words)
        return text if text in self.whole else next((run for run in _runs(words, self.length) if run in self.runs), "")
