"""Words by script, counted by hand."""

import pytest
import torch

from rewards import LanguageConsistency
from rewards.language import words_by_script
from rollouts import RolloutBatch


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So 12 + 3 is fifteen.", {"LATIN": 3}),
        ("don't re-do it", {"LATIN": 3}),
        ("naïve cafe\u0301 über", {"LATIN": 3}),
        ("所以答案 is 3", {"CJK": 4, "LATIN": 1}),
        ("это two слова", {"CYRILLIC": 2, "LATIN": 1}),
        ("abcд", {"LATIN": 1, "CYRILLIC": 1}),
        ("किताब मेज", {"DEVANAGARI": 2}),
        ("1+1=2", {}),
        ("", {}),
    ],
)
def test_words(text, expected):
    assert words_by_script(text) == expected


def test_only_the_reasoning_counts_and_an_empty_one_earns_nothing():
    texts = ["so it is</think>四", "<think>so 四 is</think>4", "<think></think>four", "no end 四"]
    ids = torch.arange(4)[:, None]
    ones = torch.ones_like(ids, dtype=torch.bool)
    batch = RolloutBatch(
        ids,
        ones,
        ids,
        ones,
        ones,
        torch.zeros(4, 1),
        ["eos"] * 4,
        [{"prompt": "?"}] * 4,
        decoder=lambda ids, mask: texts,
    )
    assert LanguageConsistency("LATIN")(batch).tolist() == pytest.approx([1, 2 / 3, 0, 2 / 3])
    assert LanguageConsistency("CJK", without_words=1.0)(batch).tolist() == pytest.approx([0, 1 / 3, 1, 1 / 3])
