"""Single labelled responses: TRL's unpaired columns, and both responses of pairs in every format."""

import pytest

from datamodules import LabelledResponses, PairSource
from support.errors import ConfigError
from tests.ecosystem.test_trl_formats import ASK, jsonl, said


def read(path, *rows, format="trl", **options):
    return LabelledResponses(PairSource(jsonl(path / "rows.jsonl", *rows), format=format), **options).read()


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "The sky is", "completion": " blue.", "label": True}, "The sky is"),
        ({"prompt": ASK, "completion": said(" blue."), "label": True}, ASK),
        ({"completion": ASK + said(" blue."), "label": True}, ASK),
    ],
    ids=["texts", "messages", "implicit prompt"],
)
def test_trls_unpaired_columns(tmp_path, row, prompt):
    rows = read(tmp_path, row, row | {"label": False})
    assert rows[0] == {"id": "0", "prompt": prompt, "response": " blue.", "desirable": True}
    assert [one["desirable"] for one in rows] == [True, False]


def test_both_responses_of_a_pair(tmp_path):
    rows = read(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"})
    assert [(one["id"], one["response"], one["desirable"]) for one in rows] == [("0/0", "a", True), ("0/1", "b", False)]
    rows = read(
        tmp_path, {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"}, format="hh"
    )
    assert [one["prompt"] for one in rows] == [[{"role": "user", "content": "p"}]] * 2


def test_safety_labels_decide_response_by_response(tmp_path):
    pku = {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 1, "ended_0": False}
    safe = {"is_response_0_safe": False, "is_response_1_safe": False}
    rows = read(tmp_path, pku | safe, format="pku", labels="safe")
    assert [one["desirable"] for one in rows] == [False, False]
    assert [one.get("ended") for one in rows] == [False, None]
    assert [one["desirable"] for one in read(tmp_path, pku | safe, format="pku")] == [False, True]
    with pytest.raises(ConfigError, match=r"data\.labels is safe, but row '0' of .* has no safety labels"):
        read(tmp_path, pku, format="pku", labels="safe")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completion": "a", "label": "good"}, "has 'good' as its label; it must be true or false"),
        ({"prompt": "p", "completion": ASK, "label": True}, "in 'completion'"),
        ({"completion": "a", "label": True}, "'prompt'"),
    ],
)
def test_rows_of_no_such_form_are_refused(tmp_path, row, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, row)


def test_prompts_are_divided_as_those_of_pairs(tmp_path):
    rows = [{"prompt": str(n), "chosen": "a", "rejected": "b"} for n in range(40)]
    data = LabelledResponses(PairSource(jsonl(tmp_path / "a.jsonl", *rows), format="trl"), val_share=0.3)
    data.setup("fit")
    train, held_out = ({row["prompt"] for row in part} for part in (data.train_data, data.val_data))
    assert held_out and not train & held_out and len(data.train_data) + len(data.val_data) == 80
