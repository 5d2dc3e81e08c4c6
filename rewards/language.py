"""Language consistency of the reasoning (DeepSeek-R1, arXiv 2501.12948, 2.3.2)."""

import unicodedata
from functools import lru_cache
from typing import Literal

from rewards.base import Reward
from rollouts import RolloutBatch
from support.papers import Paper

Script = Literal[
    "LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "HANGUL", "CJK", "HIRAGANA", "KATAKANA", "THAI"
]
#: scripts without spaces between words, where each character counts as a word
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI"}


@lru_cache(maxsize=100_000)
def script_of(character: str) -> str | None:
    """The script of a letter, None for anything else."""
    return unicodedata.name(character, "").split(" ")[0] or None if character.isalpha() else None


def words_by_script(text: str) -> dict[str, int]:
    """Number of words of each script: runs of letters, or single characters in scripts without spaces."""
    counts: dict[str, int] = {}
    before: str | None = None
    for character in text:
        script = script_of(character)
        if script is not None and (script != before or script in UNSPACED):
            counts[script] = counts.get(script, 0) + 1
        # An apostrophe or a vowel sign does not end a word.
        if script is not None or not (character in "'’-" or unicodedata.category(character).startswith("M")):
            before = script
    return counts


class LanguageConsistency(Reward):
    """Words of the target script over all words of the reasoning, between 0 and 1.

    The paper counts words of the target language; a script can be determined without a language model. The reasoning is
    the text before </think>, or the whole completion without one.

    Args:
        script: script of the target language.
        without_words: reward of a reasoning without any word; 0, so that an empty block earns nothing.
        weight, name: as in every reward.
    """

    span = (0.0, 1.0, False)

    def __init__(
        self, script: Script = "LATIN", without_words: float = 0.0, weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        self.script, self.without_words = script, without_words

    def score(self, batch: RolloutBatch) -> list[float]:
        values = []
        for text in batch.completions:
            reasoning = text.rsplit("</think>", 1)[0].replace("<think>", " ").replace("</think>", " ")
            counts = words_by_script(unicodedata.normalize("NFKC", reasoning))
            total = sum(counts.values())
            values.append(counts.get(self.script, 0) / total if total else self.without_words)
        return values


PAPER = Paper(
    name="r1",
    title="DeepSeek-R1",
    arxiv="2501.12948",
    idea="a pipeline: cold start, RL, rejection sampling, SFT, RL, distillation (`make r1`)",
    classes=("lightning_modules.SFT", "lightning_modules.GRPO", "rewards.LanguageConsistency"),
    configs=("r1/1_cold_start", "r1/2_reasoning_rl", "r1/3_rejection", "r1/4_sft", "r1/5_rl", "r1/distill"),
    effect="0.57 → 0.98 over the stages; distilled 0.83 against 0.17 by RL alone",
    not_compared="it is a pipeline of several runs",
)
