"""Authorship data: comments beside Pygments, programs beside pycparser, splits, LLM-AuthorBench's columns."""

import json
import random

import pytest
from pycparser.c_parser import CParser
from pygments.lexers import CLexer
from pygments.token import Comment

from datamodules import AuthorshipPrograms
from datamodules.authorship import template_key, without_comments
from datamodules.code_styles import AUTHORS, HABITS, SIMILAR, program, programs
from datamodules.code_tasks import TASKS
from support.errors import ConfigError


def code_tokens(text):
    """The tokens of a program without comments and white space, by Pygments."""
    directives = (Comment.Preproc, Comment.PreprocFile)
    kept = (value for kind, value in CLexer().get_tokens(text) if kind not in Comment or kind in directives)
    return "".join("".join(kept).split())


@pytest.mark.parametrize(
    "text",
    [
        "int a; // one\nint b; /* two */ int c;\n",
        "/* a\n * b\n */\nint a;\n",
        'char *s = "// no"; // yes\nchar *t = "/* no */";\n',
        "char q = '\"'; // it's\nint b;\n",
        'char *s = "a\\"// no"; /* yes */\n',
        "int a = 6 / 2; int b = a /*x*// 3;\n",
        "int a; // one \\\nstill one\nint b;\n",
        *(row["text"] for row in programs(20, seed=1)),
    ],
)
def test_comments_are_those_of_pygments(text):
    assert "".join(without_comments(text).split()) == code_tokens(text)
    assert without_comments(without_comments(text)) == without_comments(text)


def test_lines_that_held_only_comments_disappear():
    assert (
        without_comments("int a;\n  // one\n/* two\n three */\nint b; // four\n\nint c;") == "int a;\nint b; \n\nint c;"
    )
    assert without_comments("int a; /* never ends") == "int a;  "


@pytest.mark.parametrize("author", AUTHORS)
def test_every_program_is_c(author):
    for number, task in enumerate(sorted(TASKS)):
        text = program(author, task, random.Random(number))
        code = "\n".join(line for line in without_comments(text).split("\n") if not line.startswith("#"))
        CParser().parse(code)


def test_similar_authors_share_most_habits():
    def shared(one, other):
        return sum(AUTHORS[one].usual[habit] == AUTHORS[other].usual[habit] for habit in HABITS)

    pairs = {(one, other): shared(one, other) for one in AUTHORS for other in AUTHORS if one < other}
    assert max(pairs, key=pairs.get) == SIMILAR


def prepared(**options):
    data = AuthorshipPrograms(**({"size": 600, "seed": 2} | options))
    data.setup("fit")
    return data


@pytest.mark.parametrize("split", ["random", "grouped"])
def test_splits_share_nothing_that_they_must_not(split):
    data = prepared(split=split, val_share=0.1, test_share=0.3)
    parts = [data.train_data, data.val_data, data.test_data]
    texts = [{row["text"] for row in part} for part in parts]
    templates = [{row["template"] for row in part} for part in parts]
    assert all(parts) and sum(map(len, parts)) == 600 == len(set.union(*texts))
    overlaps = [len(one & other) for number, one in enumerate(templates) for other in templates[:number]]
    assert (max(overlaps) == 0) == (split == "grouped")
    if split == "random":
        assert {len([row for row in data.test_data if row["label"] == label]) for label in data.labels} == {36}
    assert data.labels == sorted(AUTHORS) and all(row["text"].startswith("code: ") for row in data.train_data)
    again, other = prepared(split=split, test_share=0.3), prepared(split=split, test_share=0.3, seed=5)
    assert again.test_data == data.test_data != other.test_data


def test_comments_are_removed_before_duplicates():
    texts = [row["text"] for row in prepared(comments=False).train_data]
    assert not any("//" in text or "/*" in text for text in texts)


def bench(folder, rows):
    path = folder / "bench.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_the_columns_of_llm_author_bench_are_read(tmp_path):
    rows = [
        {"model": model, "prompt": f"Sum {n} numbers as 'x{n}'" if n % 2 else f"Sort {n} items",
         "code": f"int {model}{n};", "SHA256": "0", "chars": 3, "lines": 1, "nloc": 1, "tokens": 3}
        for model in ("a", "b") for n in range(20)
    ]  # fmt: skip
    rows.append(dict(rows[0]))  # a duplicate
    data = prepared(source=bench(tmp_path, rows), split="random", prefix="")
    parts = [*data.train_data, *data.val_data, *data.test_data]
    assert len(parts) == 40 and data.labels == ["a", "b"] and {row["label"] for row in parts} == {"a", "b"}
    with pytest.raises(ConfigError, match="validation split .* is empty"):  # two templates cannot fill three parts
        prepared(source=bench(tmp_path, rows), split="grouped")
    assert (
        template_key("Sum 3 numbers as 'x3'") == template_key("sum 17  numbers as 'y'") != template_key("Sort 3 items")
    )


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.val_share is 0\.6 and data\.test_share 0\.5"):
        AuthorshipPrograms(val_share=0.6, test_share=0.5)
    with pytest.raises(ConfigError, match="programs of one author only"):
        prepared(source=bench(tmp_path, [{"model": "a", "code": f"int x{n};"} for n in range(9)]), split="random")
    with pytest.raises(ConfigError, match="row 1 of .* has 'None' in the column 'code'"):
        prepared(source=bench(tmp_path, [{"model": "a", "code": "x"}, {"model": "b", "code": None}]), split="random")
    with pytest.raises(ConfigError, match="maps 'template' to 'prompt'"):
        prepared(source=bench(tmp_path, [{"model": "a", "code": "x"}]), split="grouped")
