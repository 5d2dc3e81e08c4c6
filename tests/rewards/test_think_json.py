"""ThinkJSON's rewards against cases worked out by hand, and its data against the schemas they come with."""

import json

import jsonschema
import pytest

from datamodules import SchemaDemonstrations, SchemaPrompts
from rewards import FilledSchema, JsonPart, ThinkAnswerFormat
from rewards.think_json import strict_object
from support.errors import ConfigError
from tests.helpers import run_config
from tests.helpers.batches import batch_of_texts

SCHEMA = json.dumps(
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
)


def scored(reward, texts, answer, opened=False, **row):
    return reward(batch_of_texts(texts, opened, answer=answer, **row)).tolist()


@pytest.mark.parametrize(
    ("given", "wanted", "score"),
    [
        ('{"a":1,"b":2}', '{"a":1,"b":2}', 1.0),
        (' { "b": 2, "a": 1 } ', '{"a":1,"b":2}', 1.0),
        ('{"a":1,"b":3}', '{"a":1,"b":2}', 0.25 + 0.5),  # one of two values, the same length
        ('{"a":1,"b":345}', '{"a":1,"b":2}', 0.25 + 0.5 * 13 / 15),
        ('{"a":1}', '{"a":1,"b":2}', 0.25 + 0.5 * 7 / 13),
        ('{"a":1,"b":2,"c":3}', '{"a":1,"b":2}', 0.5 * 2 / 3 + 0.5 * 13 / 19),
        ('{"a":"1"}', '{"a":1}', 0.0),  # text is not a number, and nothing else matches
        ('{"a":true}', '{"a":1}', 0.0),
        ('{"a":9}', '{"a":1}', 0.0),  # right length, nothing right in it
        ('{"a":{"b":[1,2]}}', '{"a":{"b":[1,3]}}', 0.25 + 0.5),
        ('{"a":{"b":[1,2]}}', '{"a":{"b":[1]}}', 0.25 + 0.5 * 15 / 17),
        ('{"a":[]}', '{"a":[]}', 1.0),
        ('{"a":[]}', '{"a":{}}', 0.0),
        ("[1]", '{"a":1}', 0.0),
        ("1", '{"a":1}', 0.0),
        ("", '{"a":1}', 0.0),
        ('{"a":1', '{"a":1}', 0.0),
        ('{"a":1} so', '{"a":1}', 0.0),
        ('{"a":1,"a":1}', '{"a":1}', 0.0),
        ('{"a":1,"b":NaN}', '{"a":1}', 0.0),
        ('{"a":1,"b":-Infinity}', '{"a":1}', 0.0),
        ('{"a":1,"b":1e999}', '{"a":1}', 0.0),
        ("{'a':1}", '{"a":1}', 0.0),
        ('{"a":1,}', '{"a":1}', 0.0),
    ],
)
def test_the_json_reward(given, wanted, score):
    texts = [
        given,
        f"<answer>{given}</answer>",
        f"x</think>y<answer>{given}</answer>",
        f"<answer>{given}",
        f"{given}</think>",
    ]
    found = scored(FilledSchema(), texts, wanted)
    assert found == [pytest.approx(score)] * 4 + [0.0]
    exact = scored(JsonPart("exact"), texts[:1], wanted)
    assert exact == [float(score == 1)]


def test_the_shares_and_the_parts():
    given, wanted = ['{"a":1,"c":34}'], '{"a":1,"b":2}'
    assert scored(FilledSchema(share=1.0), given, wanted) == [pytest.approx(1 / 3)]
    assert scored(FilledSchema(share=0.0), given, wanted) == [pytest.approx(13 / 14)]
    assert scored(JsonPart("match"), given, wanted) == [pytest.approx(1 / 3)]
    assert scored(JsonPart("length"), given, wanted) == [pytest.approx(13 / 14)]
    assert scored(JsonPart("noise"), given, wanted) == [0.5]
    assert (
        scored(JsonPart("parsed"), [*given, "{"], wanted) == [1, 0]
        and JsonPart("parsed").weight == 0
        and JsonPart("parsed").name == "json_parsed"
    )
    assert JsonPart("exact").is_correctness and not JsonPart("match").is_correctness and FilledSchema().is_correctness


def test_deep_nesting_is_no_object():
    assert strict_object('{"a":' * 100_000 + "1" + "}" * 100_000) is None


def test_the_schema_is_asked_where_wanted():
    texts, wanted = ['{"a":1}', '{"a":"x"}', '{"a":1,"b":2}', "{"], '{"a":1}'
    assert scored(JsonPart("valid"), texts, wanted, schema=SCHEMA) == [1, 0, 0, 0]
    assert scored(FilledSchema(), texts, wanted)[2] > 0
    assert scored(FilledSchema(validate=True), texts, wanted, schema=SCHEMA) == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        (" <think>a\nb</think>\n<answer>{}</answer>\n", 1),
        ("<think></think><answer></answer>", 1),
        ("a</think><answer>b</answer>", 0),
        ("<think>a</think>b", 0),
        ("<think>a</think><answer>b</answer>c", 0),
        ("c<think>a</think><answer>b</answer>", 0),
        ("<think>a</think>c<answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", 0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0),
        ("<think>a<think>a</think><answer>b</answer>", 0),
        ("<think>a</think><answer>b<answer>b</answer>", 0),
        ("<answer>b</answer><think>a</think>", 0),
    ],
)
def test_the_format(text, right):
    assert scored(ThinkAnswerFormat(), [text], "{}") == [right]
    if text.startswith("<think>"):
        assert scored(ThinkAnswerFormat(), [text.removeprefix("<think>")], "{}", opened=True) == [right]


def test_objects_satisfy_their_schemas_and_come_from_their_texts():
    data = SchemaPrompts(keys=2, train_size=100, val_size=50, prompt="<text> <schema>", seed=1)
    train, val = data.rows("train"), data.rows("val")
    texts = [{row["prompt"].split(" {")[0] for row in rows} for rows in (train, val)]
    assert not texts[0] & texts[1]
    for row in train + val:
        text, blank = row["prompt"].split(" {")
        answer = json.loads(row["answer"])
        jsonschema.validate(answer, json.loads(row["schema"]))
        assert list(json.loads("{" + blank)) == list(answer) and all(str(value) in text for value in answer.values())
        FilledSchema(validate=True).check_columns(row)
    demonstrations = SchemaDemonstrations(
        train_size=300, val_size=10, prompt="<text> <schema>", broken=0.8, wrong=0.2, untagged=0.3, seed=1
    )
    demonstrations.setup("fit")
    texts = [
        row["response"].removeprefix("</think>").removeprefix("<answer>").removesuffix("</answer>")
        for row in demonstrations.train_data
    ]
    parsed = [strict_object(text) is not None for text in texts]
    assert 0.12 < sum(parsed) / 300 < 0.28 and not {
        row["prompt"].split(" {")[0] for row in demonstrations.train_data
    } & {row["prompt"].split(" {")[0] for row in val}


def test_mistakes_are_named():
    for make, said in (
        (lambda: FilledSchema(share=1.5), "share is 1.5"),
        (lambda: JsonPart("speed"), "choose one of parsed"),
        (lambda: SchemaPrompts(keys=4), "1 to 3"),
        (lambda: SchemaPrompts(prompt="<text>"), "<text> and <schema>"),
        (lambda: FilledSchema().check_columns({"id": "1", "answer": "[1]"}), "needs JSON objects"),
        (lambda: FilledSchema(validate=True).check_columns({"id": "1", "answer": "{}"}), "'schema'"),
    ):
        with pytest.raises(ConfigError, match=said):
            make()


def test_the_configuration_runs(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    changes = {"model.batch.group_size": 2, "model.sampling.max_new_tokens": 4, "trainer.val_check_interval": 1}
    cli = run_config(["think_json"], reasoner, unchanged=["data.train_size", "trainer.limit_val_batches"], **changes)
    found = cli.trainer.callback_metrics
    assert {"val/pass@1", "val/reward/json_parsed", "val/reward/json_noise", "train/reward/think_answer_format"} <= set(
        found
    )
    assert float(found["train/reward"]) == pytest.approx(
        float(found["train/reward/filled_schema"] + found["train/reward/think_answer_format"])
    )
