"""Schemas from data rows: checked with their row, nothing is fetched, and no answer ends a run or takes long."""

import json
import socket
import threading
import time

import pytest

from rewards import FilledSchema, JsonPart, answer_process
from rewards.answer_process import Pool
from rewards.schemas import schema_fault
from rewards.think_json import DEEPEST, strict_object
from support.errors import ConfigError
from tests.rewards.test_rewards import batch_of

OBJECT = {"type": "object"}


@pytest.fixture
def listener():
    """The address of a server, and the connections that it got."""
    server, connections = socket.create_server(("127.0.0.1", 0)), []

    def accept():
        while True:
            try:
                connections.append(server.accept()[0])
            except OSError:
                return
            connections[-1].close()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/schema.json", connections
    server.close()


def row(schema, answer=None):
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return {"id": "r7", "prompt": "?", "answer": json.dumps(answer or {"a": 1}), "schema": text}


@pytest.mark.parametrize("where", ["$ref", "$dynamicRef", "nested", "unused", "followed", "file"])
def test_nothing_is_fetched_and_the_row_is_named(listener, where):
    url, connections = listener
    schema = {
        "$ref": {"$ref": url},
        "$dynamicRef": {"$dynamicRef": url + "#x"},
        "nested": {"properties": {"a": {"items": {"not": {"$ref": url}}}, "b": {"anyOf": [{"$ref": url}]}}},
        "unused": {"$defs": {"a": {"$ref": url}}},
        "followed": {"$ref": "#/elsewhere/deep", "elsewhere": {"deep": {"$ref": url}}},
        "file": {"$ref": "file:///etc/hostname"},
    }[where]
    with pytest.raises(ConfigError, match="schema of row 'r7'.*leads to no part of the schema, and nothing is fetched"):
        FilledSchema(validate=True).check_columns(row(schema))
    (score,) = FilledSchema(validate=True)(batch_of(['{"a": 1}'], [row(schema)])).tolist()
    assert score == (1 if where in ("unused", "nested") else 0), "what is not followed does no harm"
    assert connections == []


@pytest.mark.parametrize(
    "schema",
    [
        "", "{", "[]", "7", '"x"', "null", {"type": "no such type"}, {"type": 7}, {"pattern": "("}, {"$ref": 7},
        {"properties": []}, {"required": "a"}, {"$ref": "#/nowhere"}, {"$ref": "#nowhere"}, {"$ref": "other.json"},
        {"$schema": 7}, '{"not": ' * 900 + "true" + "}" * 900, {"patternProperties": {"(": {}}}, {"multipleOf": 0},
    ],
    ids=lambda schema: str(schema)[:30],
)  # fmt: skip
def test_a_bad_schema_is_refused_with_its_row(schema):
    for reward in (FilledSchema(validate=True), JsonPart("valid")):
        with pytest.raises(ConfigError, match="schema of row 'r7'"):
            reward.check_columns(row(schema))


@pytest.mark.parametrize(
    "schema",
    [
        True, {}, OBJECT, {"$ref": "#/$defs/a", "$defs": {"a": OBJECT}}, {"properties": {"a": {"$ref": "#"}}},
        {"$id": "http://example.com/a", "$defs": {"b": {"$id": "b", "type": "object"}}, "$ref": "b"},
        {"$id": "http://example.com/a", "$defs": {"b": {"$anchor": "here"}}, "$ref": "#here"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {}}, "$ref": "#/definitions/a"},
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        {"enum": [{"$ref": "http://example.com"}], "const": {"$ref": "http://example.com"}},
    ],
    ids=lambda schema: str(schema)[:30],
)  # fmt: skip
def test_good_schemas_pass(schema):
    assert schema_fault(json.dumps(schema)) == ""
    FilledSchema(validate=True).check_columns(row(schema))


RECURSIVE = {"$ref": "#/$defs/n", "$defs": {"n": {"additionalProperties": {"$ref": "#/$defs/n"}}}}


@pytest.mark.parametrize("depth", [DEEPEST - 1, DEEPEST, 300, 990, 5000, 100_000])
@pytest.mark.parametrize("opening, closing", [('{"a":', "}"), ("[", "]")])
def test_nested_answers_are_wrong_and_end_nothing(depth, opening, closing):
    text = '{"a":' + opening * depth + "1" + closing * depth + "}"
    rewards = [FilledSchema(validate=True), *map(JsonPart, ("parsed", "match", "length", "noise", "exact", "valid"))]
    for reward in rewards:
        (score,) = reward(batch_of([text], [row(RECURSIVE)])).tolist()
        assert score == 0 or depth < DEEPEST
    assert (strict_object(text) is None) == (depth >= DEEPEST)


def test_a_pattern_of_exponential_cost_has_a_time_limit(monkeypatch):
    monkeypatch.setattr(answer_process, "_pool", Pool(1))
    schema = {"properties": {"a": {"pattern": "^(a+)+$"}}}
    reward, rows = JsonPart("valid"), [row(schema, {"a": "aaa"})]
    reward.check_columns(rows[0])
    assert reward(batch_of(['{"a": "aaa"}'], rows)).tolist() == [1]
    started = time.monotonic()
    assert reward(batch_of(['{"a": "' + "a" * 60 + '!"}', '{"a": "aa"}', '{"a": "b"}'], rows)).tolist() == [0, 1, 0]
    assert time.monotonic() - started < 10
