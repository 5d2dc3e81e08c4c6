"""Somebody's columns become prompts and answers: templates, patterns, system prompts, worked examples, several sets."""

import gzip
import json

import pytest

from datamodules import FilePrompts
from datamodules.file_prompts import ValidationSet
from datamodules.prompt_form import FewShot
from datamodules.rows import read_rows
from support.errors import ConfigError

WORKED = [
    {"question": f"Tom has {i} apples and gets {i}. {{How}} many?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"}
    for i in range(1, 21)
]
TEMPLATE = "{question}\nPut the final answer in \\boxed{{}}."


@pytest.fixture
def worked(tmp_path):
    path = tmp_path / "worked.jsonl"
    path.write_text("\n".join(map(json.dumps, WORKED)))
    return str(path)


def test_a_template_an_answer_pattern_and_a_system_prompt(worked):
    data = FilePrompts(worked, val_size=5, template=TEMPLATE, answer_pattern="#### (.+)", system="Be brief.")
    first = data.rows("train")[0]
    assert first["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Tom has 1 apples and gets 1. {How} many?\nPut the final answer in \\boxed{}."},
    ]
    assert first["answer"] == "2" and first["solution"] == "1 + 1 = 2"
    assert [row["answer"] for row in data.rows("val")] == ["32", "34", "36", "38", "40"]


def test_the_last_match_is_the_answer_and_a_systems_own_prompt_stays(tmp_path):
    path = tmp_path / "d.jsonl"
    chat = [{"role": "system", "content": "mine"}, {"role": "user", "content": "q"}]
    path.write_text(json.dumps({"prompt": chat, "answer": "#### 1 no, #### 2"}))
    row = FilePrompts(str(path), val_size=0, system="ours", answer_pattern=r"#### (\d+)").rows("train")[0]
    assert row["answer"] == "2" and row["prompt"] == chat


def test_worked_examples_as_turns_and_as_text(worked):
    settings = {"val_size": 5, "template": "{question}", "answer_pattern": "#### (.+)", "seed": 3}
    shown = FilePrompts(worked, few_shot=FewShot(2, "{solution} So {answer}."), system="S", **settings)
    prompts = [row["prompt"] for row in shown.rows("train") + shown.rows("val")]
    assert len(shown.rows("train")) == 13, "two of fifteen became examples"
    assert all([m["role"] for m in p] == ["system", "user", "assistant", "user", "assistant", "user"] for p in prompts)
    assert len({json.dumps(p[:-1]) for p in prompts}) == 1, "the same examples everywhere"
    asked = {p[-1]["content"] for p in prompts}
    assert len(asked) == 18 and not asked & {prompts[0][1]["content"], prompts[0][3]["content"]}, "never asked"
    number = prompts[0][1]["content"].split()[2]
    assert prompts[0][2]["content"] == f"{number} + {number} = {2 * int(number)} So {2 * int(number)}."

    texts = [row["prompt"] for row in FilePrompts(worked, few_shot=FewShot(2, as_turns=False), **settings).rows("val")]
    first, second, question = texts[0].split("\n\n")
    assert first == f"{prompts[0][1]['content']}\n{number} + {number} = {2 * int(number)}", "the solution by default"
    assert question == WORKED[15]["question"] and second.count("\n") == 1


def test_several_validation_sets_each_with_its_own_columns(worked, tmp_path):
    other = tmp_path / "other.json.gz"
    rows = [{"Body": f"B{i}.", "Question": f"Q{i}?", "Answer": float(i)} for i in range(7)]
    other.write_bytes(gzip.compress(json.dumps(rows).encode()))
    data = FilePrompts(
        worked, template="{question}", answer_pattern="#### (.+)", val_size=4,
        val_sets={
            "worked": ValidationSet(worked, template="{question}!", answer_pattern="#### (.+)"),
            "short": ValidationSet(str(other), columns={"answer": "Answer"}, template="{Body} {Question}"),
        },
    )  # fmt: skip
    val = data.rows("val")
    assert len(data.rows("train")) == 20, "nothing of the training file is held out"
    assert [row["task"] for row in val] == ["worked"] * 4 + ["short"] * 4
    assert val[4]["prompt"] == "B0. Q0?" and val[4]["answer"] == 0.0 and val[0]["prompt"].endswith("many?!")
    assert len({row["id"] for row in val}) == 8


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.json.gz", "d.csv.gz"])
def test_compressed_files_are_read_alone_and_in_a_folder(tmp_path, name):
    rows = [{"prompt": "a", "answer": "007"}, {"prompt": "ü", "answer": "2"}]
    text = {
        "d.jsonl.gz": "\n".join(map(json.dumps, rows)),
        "d.json.gz": json.dumps(rows),
        "d.csv.gz": "prompt,answer\na,007\nü,2\n",
    }[name]
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert read_rows(str(tmp_path / name)) == rows == read_rows(str(tmp_path))
    (tmp_path / name).write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(ConfigError, match="no whole gzip file"):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"template": "{qestion}"},
            r"data.template names the column 'qestion', but row 0 .* no such column.*'question'",
        ),
        ({"template": "{question} \\boxed{}"}, "data.template is .*write|Write"),
        ({"template": "{question"}, "data.template is"),
        ({"template": "{question!r}"}, "braces hold the name of a column and nothing else"),
        ({"template": "{question.__class__}"}, "data.template names the column 'question.__class__'"),
        ({"answer_pattern": "#### .+"}, "with 0 groups; it needs exactly one"),
        ({"answer_pattern": "####("}, "no regular expression"),
        ({"template": "{question}", "answer_pattern": "## (x)"}, "row 0 of .* matches nothing"),
        ({"template": "{question}", "few_shot": FewShot(-1)}, "data.few_shot.count is -1"),
        ({"template": "{question}", "few_shot": FewShot(15)}, "data.few_shot.count is 15; .* below the 15 training"),
        ({"template": "{question}", "few_shot": FewShot(1, "{how}")}, "data.few_shot.response names the column 'how'"),
        ({"template": "{question}", "system": "S", "few_shot": FewShot(1, as_turns=False)}, "as_turns is false"),
        ({"columns": {"prompt": "answer"}, "val_source": "x", "val_sets": {}}, "are both set"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(worked, settings, message):
    with pytest.raises(ConfigError, match=message):
        FilePrompts(worked, **{"val_size": 5} | settings).rows("train")


@pytest.mark.parametrize("prompt", [5, ["a"], [{"role": "user"}], {"role": "user", "content": "x"}])
def test_a_prompt_of_another_kind_is_refused_before_it_is_formed(tmp_path, prompt):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"prompt": prompt, "answer": "1"}))
    with pytest.raises(ConfigError, match="row 0 of .* a prompt is a text, or a list of messages"):
        FilePrompts(str(path), val_size=0, system="S").rows("train")
