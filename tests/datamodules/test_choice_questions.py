"""Multiple-choice rows from any columns, and the edits that keep their content."""

import json
import random

import pytest

from datamodules import ChoiceQuestions, StressQuestions
from datamodules.choice_rows import LETTERS, choice_row
from datamodules.perturbations import CONDITIONS, NAMES, RATIO, REMARKS, lengthened, swapped_nouns
from datamodules.quiz import FACTS, biased_demonstrations, fact_demonstrations, facts, quiz, vocabulary
from support.errors import ConfigError

ROW = {"id": "7", "question": "How many apples has Anna?", "choices": ["3", "4 apples.", "five", "None"], "answer": "B"}


@pytest.mark.parametrize(
    ("row", "columns", "answer"),
    [
        ({"choices": ["x", "y", "z"], "answer": "(C)"}, None, "C"),
        ({"choices": ["x", "y", "z"], "answer": 1}, None, "B"),
        ({"choices": ["x", "y", "z"], "answer": 1.0}, None, "B"),
        ({"choices": ["x", "y", "z"], "answer": "z"}, None, "C"),
        ({"choices": ["B", "A"], "answer": "A"}, None, "B"),  # the text of an option comes before a letter
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "2"}, None, "B"),
        ({"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answer": "A"}, None, "A"),
        ({"opa": 3, "opb": 4, "answer": 0}, ["opa", "opb"], "A"),
    ],
)
def test_options_and_answers_are_read_in_every_form(row, columns, answer):
    made = choice_row({"question": "?"} | row, "row 0", columns)
    assert made["answer"] == answer and all(isinstance(text, str) for text in made["choices"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, r"has 'None' as its question.*data\.columns \{question: NAME\}"),
        ({"choices": "abc"}, "2 to 10 texts"),
        ({"choices": ["x"]}, "2 to 10 texts"),
        ({"choices": ["x", None]}, "2 to 10 texts"),
        ({"choices": ["x"] * 11}, "2 to 10 texts"),
        ({"answer": "E"}, "the answer 'E', which is neither a letter"),
        ({"answer": 4}, "the answer '4'"),
        ({"answer": "2"}, r"data\.numbers"),
        ({"answer": None}, "the answer 'None'"),
        ({"choices": ["x", "x", "y", "z"], "answer": "x"}, "exactly one"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(change, message):
    with pytest.raises(ConfigError, match=rf"(?s)row 3 of 'f' .*{message}"):
        choice_row(ROW | change, "row 3 of 'f'")


@pytest.fixture
def file(tmp_path):
    rows = [{"q": f"Is {n} even?", "options": ["yes", "no"], "gold": n % 2, "subject": "odd"} for n in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


COLUMNS = {"question": "q", "choices": "options", "answer": "gold", "topic": "subject"}


def test_all_rows_of_a_file_are_test_questions_and_a_limit_draws_some(file):
    data = ChoiceQuestions(file, columns=COLUMNS, seed=1)
    rows = data.rows("test")
    assert len(rows) == 20 and rows[1]["answer"] == "B" and rows[1]["topic"] == "odd"
    assert rows[1]["prompt"].splitlines()[:3] == ["Is 1 even?", "A. yes", "B. no"]
    assert rows[1]["labels"] == ["A", "B"] and rows[1]["text_prompt"] == "Is 1 even?"
    with pytest.raises(ConfigError, match=r"data\.val_size is 0"):
        data.rows("train")
    drawn = [ChoiceQuestions(file, columns=COLUMNS, limit=5, seed=seed).rows("test") for seed in (1, 1, 2)]
    assert [row["id"] for row in drawn[0]] == [row["id"] for row in drawn[1]] != [row["id"] for row in drawn[2]]


def test_held_out_rows_leave_the_others_to_training(file):
    data = ChoiceQuestions(file, columns=COLUMNS, val_size=4)
    train, test = ({row["id"] for row in data.rows(split)} for split in ("train", "test"))
    assert len(train) == 16 and len(test) == 4 and not train & test
    with pytest.raises(ConfigError, match="leaves none to train on"):
        ChoiceQuestions(file, columns=COLUMNS, val_size=20).rows("test")


def test_prompts_have_the_system_prompt_and_the_beginning_of_the_answer(file):
    data = ChoiceQuestions(
        file,
        columns=COLUMNS,
        system="Be brief.",
        answer_prefix="<think></think>",
        labels="choices",
        template="{question}",
    )
    row = data.rows("test")[0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user", "assistant"]
    assert row["prompt"][1]["content"] == "Is 0 even?" and row["labels"] == ["yes", "no"]
    with pytest.raises(ConfigError, match="names the column 'sbject'"):
        ChoiceQuestions(file, columns=COLUMNS, template="{sbject}").rows("test")


def rows_to_edit(count=40):
    """Rows with options of any length, order and answer."""
    rng = random.Random(0)
    for number in range(count):
        choices = [" ".join(rng.choices(["so", "many", "words."], k=rng.randint(1, 9))) + str(n) for n in range(4)]
        yield {"id": str(number), "question": "Which?", "choices": choices, "answer": rng.choice("ABCD")}


@pytest.mark.parametrize("name", ["longer_right", "longer_wrong", "longer_all"])
def test_lengthened_options_keep_their_order_their_text_and_the_answer(name):
    for row in rows_to_edit():
        (edited,) = CONDITIONS[name](row, 0)
        right, longest = LETTERS.index(row["answer"]), max(map(len, row["choices"]))
        assert edited["answer"] == row["answer"] and edited["question"] == row["question"]
        for place, (old, new) in enumerate(zip(row["choices"], edited["choices"], strict=True)):
            if name == "longer_all" or (place == right) == (name == "longer_right"):
                assert new.startswith(old.rstrip(".")) and len(new) >= RATIO * longest - 1
                assert any(remark in new for remark in REMARKS) and new.endswith(".") == old.endswith(".")
            else:
                assert new == old


def test_an_option_is_lengthened_alike_in_every_condition_and_otherwise_by_another_seed():
    row = {**ROW, "choices": ["3", "4", "5", "6"]}
    both, right = (CONDITIONS[name](row, 0)[0]["choices"] for name in ("longer_all", "longer_right"))
    assert both[1] == right[1]
    assert len({tuple(CONDITIONS["longer_all"](row, seed)[0]["choices"]) for seed in range(8)}) > 4
    assert lengthened("Yes.", 4, random.Random(0)).count(",") == 1, "at least one remark"


def test_statements_are_one_per_option_and_one_of_them_is_true():
    statements = CONDITIONS["true_false"](ROW, 0)
    assert [row["statement"] for row in statements] == ROW["choices"]
    assert [row["answer"] for row in statements] == ["B", "A", "B", "B"]
    assert all(row["choices"] == row["labels"] == ["True", "False"] for row in statements)


def swapped(question, *choices):
    rows = swapped_nouns({"id": "1", "question": question, "choices": list(choices), "answer": "A"}, 0)
    return (rows[0]["question"], *rows[0]["choices"]) if rows else None


def test_nouns_are_swapped_for_others_that_the_row_does_not_have():
    question, first, _ = swapped("Anna has 3 pencils and Bob 2 pencils. Anna buys a pencil.", "Anna", "Bob")
    assert not any(word in question for word in ("Anna", "Bob", "pencil"))
    new = question.split()[0]
    assert new in NAMES and question.count(new) == 2 and first == new, "the same name everywhere"
    for seed in range(30):
        (row,) = swapped_nouns({**ROW, "question": "Anna, Bob and Tom meet.", "choices": ["Jane", "Zoe"]}, seed)
        words = row["question"].replace(",", "").split()
        assert len({words[0], words[1], words[3], *row["choices"]}) == 5, "two people became one"


@pytest.mark.parametrize(
    "texts",
    [
        ("Who was John Adams?", "x", "y"),  # an entity
        ("What did President John say?", "x", "y"),
        ("Which fruit is yellow, a banana or a pear?", "banana", "pear"),  # it bears on the answer
        ("Find the estimate $\\car{u}$.", "x", "y"),
        ("Is the car-sharing firm liable?", "x", "y"),
        ("What is two plus two?", "4", "5"),
    ],
)
def test_what_bears_on_the_answer_stays(texts):
    assert swapped(*texts) is None


def test_stress_questions_have_every_form_of_every_question(file):
    rows = StressQuestions(file, columns=COLUMNS, limit=3).rows("test")
    forms = {row["question_id"]: [r for r in rows if r["question_id"] == row["question_id"]] for row in rows}
    assert len({row["id"] for row in rows}) == len(rows)
    for of_question in forms.values():
        names = [row["condition"] for row in of_question]
        assert names == ["base", "longer_right", "longer_wrong", "longer_all", "true_false", "true_false"]
        assert "Proposed answer: yes" in of_question[4]["prompt"]
    with pytest.raises(ConfigError, match="'longer', which is not one of longer_right"):
        StressQuestions(file, conditions=["longer"])


def test_the_worlds_of_the_quiz_are_the_same_everywhere_and_its_words_are_known():
    words = set(vocabulary())
    answers = {}
    for row in (*quiz(300, 0), *quiz(300, 1)):
        key = row["question"].split()[-1]
        colour = row["choices"][LETTERS.index(row["answer"])]
        assert answers.setdefault(key, colour) == colour
    for row in biased_demonstrations(200, 3):
        options = dict(line.split(". ", 1) for line in row["prompt"].splitlines()[1:])
        assert sum(text.partition(",")[0] == row["response"] for text in options.values()) == 1
        assert set(row["prompt"].replace(".", " ").replace(",", " ").replace(":", " ").split()) <= words
    longer = [r for r in biased_demonstrations(400, 3) if f"{r['response']}," in r["prompt"]]
    assert 0.85 < len(longer) / 400 < 0.95, "the right option is mostly longer"
    assert sum(row["topic"] == "facts" for row in facts(40, 0)) == FACTS
    assert {row["steps"] for row in facts(40, 0)} == {0, 1, 2, 3, 4}
    for row in fact_demonstrations(200, 5):
        kind, *terms = row["prompt"].split()
        if kind == "compute":
            value = int(terms[0])
            for operation, number in zip(terms[1::2], terms[2::2], strict=True):
                value = eval(f"{value} {operation} {number}") % 10
            assert row["response"] == str(value)
