"""Prompts that count as the same: case, spaces, invisible characters and encodings do not tell them apart."""

import unicodedata

import pytest

from lightning_modules.hc_rlhf import Ledger, check_disjoint
from support.errors import ConfigError
from support.files import fingerprint
from support.prompt_identity import normalised
from support.seen_prompts import SeenPrompts

PROMPT = "Où est la file d’attente du café de la Straße, en Å?"
SPELLINGS = {
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "decomposed, with compatible forms": lambda text: unicodedata.normalize("NFKD", text),
    "ligatures": lambda text: text.replace("fi", "\ufb01"),
    "full width": lambda text: text.replace("a", "\uff41"),
    "the sign of a unit": lambda text: text.replace("Å", "\u212b"),
    "capitals": str.upper,
    "capitals of another kind": lambda text: text.replace("ß", "\u1e9e"),
    "spaces that do not break": lambda text: text.replace(" ", "\u00a0"),
    "wide spaces": lambda text: text.replace(" ", "\u3000"),
    "lines": lambda text: text.replace(" ", "\r\n"),
    "separators of lines": lambda text: text.replace(" ", " \u2028"),
    "spaces at the ends": lambda text: f"\t {text}\u2003",
    "spaces without width": "\u200b".join,
    "joiners": "\u2060".join,
    "joiners in a letter": lambda text: unicodedata.normalize("NFD", text).replace("\u0301", "\u200d\u0301"),
    "hyphens for breaks": lambda text: text.replace("attente", "at\u00adten\u00adte"),
    "the mark of a file": lambda text: "\ufeff" + text,
    "directions": lambda text: f"\u202a{text}\u202c\u200e",
    "selectors": lambda text: text + "\ufe0f\U000e0100",
    "tags": lambda text: text + "\U000e0041\U000e007f",
    "controls": lambda text: "\x00\x1b" + text + "\x7f",
    "fillers": lambda text: text + "\u3164\u115f\u034f",
    "chat": lambda text: [{"role": "user", "content": text}],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_another_spelling_is_the_same_prompt_wherever_prompts_are_compared(name):
    other = SPELLINGS[name](PROMPT)
    assert other != PROMPT and normalised(other) == normalised(PROMPT)
    with pytest.raises(ConfigError, match="1 of 2 prompts of the safety split are also in the train split"):
        check_disjoint([other, "b"], {"the train split": [PROMPT]})
    with pytest.raises(ConfigError, match="1 prompts of the safety split are repeated"):
        check_disjoint([PROMPT, other], {})
    seen = SeenPrompts()
    seen.add("the train split of Pairs", [PROMPT])
    with pytest.raises(ConfigError, match="1 of 1 prompts of the safety split are also in the train split of Pairs"):
        check_disjoint([other], {}, SeenPrompts.from_state_dict(seen.state_dict()).by_source)
    Ledger([PROMPT]).begin("one", "q", 0.1, 1)
    with pytest.raises(ConfigError, match="tested 1 time"):
        Ledger([other]).begin("two", "q", 0.1, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Compute 5²", "Compute 52"),
        ("Add ½ to 1", "Add 1/2 to 1"),
        ("H₂O", "H2O"),
        ("résumé", "resume"),
        ("a b", "ab"),
        ("-1", "1"),
        ("我", "你"),
    ],
)
def test_other_meanings_are_other_prompts(one, other):
    assert normalised(one) != normalised(other)
    check_disjoint([one], {"the train split": [other]})


def test_records_of_an_earlier_version_still_count():
    """They hold fingerprints of the lower-case text with single spaces."""
    earlier = {fingerprint([PROMPT.lower()])[:16]}
    with pytest.raises(ConfigError, match="1 of 1 prompts"):
        check_disjoint([PROMPT], {}, {"the train split of Pairs": earlier})
    ledger = Ledger([PROMPT])
    event = {"split": "x", "prompts": sorted(earlier), "time": "2025-01-01T00:00:00Z"}
    ledger.journals[0].append(event | {"candidate": "one", "question": "q", "delta": 0.1})
    with pytest.raises(ConfigError, match="tested 1 time"):
        Ledger([PROMPT]).begin("two", "q", 0.1, 1)
