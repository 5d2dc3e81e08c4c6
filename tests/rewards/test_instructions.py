"""Hand-made texts for every kind of instruction, and for the letters of multiple-choice answers."""

import json

import pytest
from test_rewards import batch_of

from datamodules import FilePrompts
from rewards import InstructionFollowing, MultipleChoice
from rewards.choices import stated_letter
from rewards.instructions import KINDS
from support.errors import ConfigError

#: kind, arguments, a text that follows, one that does not
CASES = [
    ("keywords", {"words": ["Ada", "loop"]}, "ada wrote a loop", "Adam wrote a loop"),
    ("keywords", {"words": ["very good"], "at_least": 2}, "Very good, very good", "very good, very bad"),
    ("forbidden_words", {"words": ["cat"]}, "concatenate", "The CAT."),
    ("number_of_words", {"at_least": 3, "at_most": 4}, "it's well-made, really", "one two"),
    ("number_of_words", {"at_most": 2}, "one two", "one two three"),
    ("number_of_sentences", {"at_least": 2, "at_most": 2}, "Pi is 3.14. Is it? ", "Pi is 3.14."),
    ("number_of_sentences", {"at_most": 1}, 'He said "no."', "No. No."),
    ("number_of_paragraphs", {"at_least": 2, "at_most": 2}, "a\n\nb\nc", "a\nb"),
    ("number_of_bullets", {"at_least": 2, "at_most": 2}, "List:\n- a\n* b", "- a\n-b\n--- \n"),
    ("number_of_placeholders", {"at_least": 2}, "[name] at [place]", "[name] at []"),
    ("number_of_highlights", {"at_least": 2}, "*a* and **b c**", "*a and b* c *"),
    ("letter", {"character": "e", "at_least": 2, "at_most": 2}, "Eve", "eel e"),
    ("starts_with", {"phrase": "Dear"}, "Dear all", "dear all"),
    ("ends_with", {"phrase": "Any questions?"}, "Done. Any questions?", "Any questions? No."),
    ("quoted", {}, '"all of it"', '"a" b'),
    ("title", {}, "<<Joy>>\ntext", "<<  >>"),
    ("postscript", {}, "text\nP.S. more", "text P.S. more"),
    ("postscript", {"marker": "PPS"}, "text\nPPS: more", "text\nPS: more"),
    ("json", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("json", {"keys": ["a"]}, '{"a": 1, "b": 2}', "[1]"),
    ("case", {"which": "lower"}, "all small, 1é", "Not"),
    ("case", {"which": "upper"}, "ALL GREAT É", "123"),
    ("capital_words", {"at_least": 1, "at_most": 1}, "NASA and I", "NASA and ESA"),
    ("language", {"script": "CYRILLIC"}, "Привет, мир 1", "Привет, world"),
    ("no_commas", {}, "a; b", "a, b"),
    ("one_of", {"options": ["My answer is yes.", "My answer is no."]}, "My answer is no.", "no"),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), CASES)
def test_an_instruction(kind, arguments, good, bad):
    row = {"prompt": "p", "instructions": [{"kind": kind, "unused": None, **arguments}]}
    reward = InstructionFollowing()
    reward.check_columns(row)
    assert reward(batch_of([f"thoughts</think>{good}", bad, ""], [row])).tolist() == [1, 0, 0]


def test_every_kind_has_a_case():
    assert {kind for kind, *_ in CASES} == set(KINDS)


def test_share_or_all():
    row = {
        "prompt": "p",
        "instructions": [
            {"kind": "no_commas"},
            {"kind": "case", "which": "lower"},
            {"kind": "starts_with", "phrase": "a"},
        ],
    }
    texts = ["a b", "A, b", "b c"]
    assert InstructionFollowing()(batch_of(texts, [row])).tolist() == pytest.approx([1, 0, 2 / 3])
    assert InstructionFollowing(graded=False)(batch_of(texts, [row])).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ([], "at least one"),
        ([{"kind": "rhyme"}], "no instruction of the kind 'rhyme'; use one of capital_words"),
        ([{"kind": "keywords"}], "'keywords' cannot take {}: missing a required argument: 'words'"),
        ([{"kind": "no_commas", "words": ["a"]}], "cannot take .*unexpected keyword argument 'words'"),
        ([{"kind": "number_of_words"}], "needs at_least, at_most or both"),
        ([{"kind": "case", "which": "title"}], "which: 'title', which is not of the type"),
        ([[]], r"there is no instruction of the kind \[\]"),
        (["no_commas"], "there is no instruction of the kind 'no_commas'"),
        ([{"kind": ["no_commas"]}], r"there is no instruction of the kind \['no_commas'\]"),
        ([{"kind": "keywords", "words": ["a", 5]}], r"words: \['a', 5\], which is not of the type list\[str\]"),
        ([{"kind": "number_of_words", "at_least": "x"}], "at_least: 'x', which is not of the type"),
        ([{"kind": "number_of_words", "at_least": 2.5}], "at_least: 2.5, which is not of the type"),
    ],
)
def test_a_faulty_row_is_named(instructions, message):
    with pytest.raises(ConfigError, match=message):
        InstructionFollowing().check_columns({"prompt": "p", "id": "7", "instructions": instructions})


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(c)", "C"),  # a small letter alone is a list's number as often
        ("(C)", "C"),
        ("D.", "D"),
        ("**A**", "A"),
        ("The answer is B.", "B"),
        ("The answer is (B) because A is wrong", "B"),
        ("Answer: c", "C"),
        ("**Answer:** D", "D"),
        ("Final answer: **B**", "B"),
        ("the correct option is A", "A"),
        ("I would choose option C", "C"),
        ("The answer would be: option D", "D"),
        (r"so \boxed{B}", "B"),
        (r"\boxed{\text{(C)}}", "C"),
        ("<answer>(A)</answer>", "A"),
        ("First I thought A, then B, finally C", "C"),
        ("The answer is A. No, wait: the answer is D", "D"),
        ("A ball falls. B) it rises", "B"),
        ("A ball falls", None),
        ("I think a cat is a mammal", None),
        ("The answer is a mammal", None),
        ("It isn't clear", None),
        ("E", None),  # of four options
        ("Vitamin C", "C"),
        ("C'est la vie", None),
        ("Between A and B I take (A)", "A"),
        ("", None),
    ],
)
def test_the_last_stated_letter(text, letter):
    assert stated_letter(text) == letter


def test_multiple_choice_reads_letters_and_numbers():
    rows = [{"prompt": "p", "answer": "(b)"}, {"prompt": "q", "answer": 4, "choices": list("vwxyz")}]
    reward = MultipleChoice()
    for row in rows:
        reward.check_columns(row)
    assert reward(batch_of(["A</think>B", "A", "The answer is E", "none"], rows)).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("answer", ["E", "AB", "the first", 4, True])
def test_an_answer_that_is_no_choice_is_refused(answer):
    with pytest.raises(ConfigError, match="neither a letter of 4 choices"):
        MultipleChoice().check_columns({"prompt": "p", "answer": answer})


def test_rows_of_a_file_with_unequal_instructions(tmp_path):
    """Tables give every instruction the arguments of all."""
    rows = [
        {"prompt": "p", "instructions": [{"kind": "keywords", "words": ["a"]}, {"kind": "no_commas"}]},
        {"prompt": "q", "instructions": [{"kind": "number_of_words", "at_most": 2}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = FilePrompts(str(tmp_path / "rows.jsonl"), val_size=1, seed=0)
    reward, found = InstructionFollowing(), [*read.rows("train"), *read.rows("val")]
    for row in found:
        reward.check_columns(row)
    assert reward(batch_of(["a b c", "a b c"], found)).tolist() == [1, 0]
