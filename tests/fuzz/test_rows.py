"""Any file of rows is read, or refused by a ConfigError that names it; never another exception."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rewards
from assets.make_untrained import assistant_tokenizer, reasoner_tokenizer
from datamodules import FilePrompts
from datamodules.preferences import PairSource
from datamodules.rows import check_rows, read_json, read_rows
from policies.prompt_encoding import encode_content, encode_prompt
from rewards.instructions import KINDS
from support.errors import ConfigError
from support.prompt_identity import normalised
from tests.fuzz.shares import cases
from tests.fuzz.test_completions import COMPLETIONS, JSON, REWARDS
from tests.rewards.test_rewards import batch_of

COLUMNS = [
    "prompt",
    "answer",
    "task",
    "entry",
    "instructions",
    "choices",
    "clause",
    "schema",
    "id",
    "level",
    "response",
    "role",
    "content",
    "x",
]
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "eos", "", 3]), "content": st.text(max_size=5) | JSON}
    ),
    max_size=3,
)
#: instructions with arguments of any type
FAULTY = st.dictionaries(
    st.sampled_from(["kind", "words", "at_least", "at_most", "character", "phrase", "which", "script", "options"]),
    st.sampled_from(sorted(KINDS)) | JSON,
    max_size=3,
)
VALUES = st.text(max_size=20) | JSON | MESSAGES | st.lists(FAULTY, max_size=2)
ROWS = st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=6)
LINES = st.one_of(
    ROWS.map(lambda row: json.dumps(row).encode()),
    JSON.map(lambda v: json.dumps(v).encode()),
    st.binary(max_size=30),
    st.sampled_from(
        [
            b"",
            b"{}",
            b"null",
            b'{"prompt": "\\ud800"}',
            b'{"prompt": "\xff"}',
            b"[" * 5000,
            b"9" * 5000,
            b'{"prompt": "a\x00"}',
            b"\xef\xbb\xbf{}",
            b'{"answer": Infinity}',
        ]
    ),
)


CHECKED = REWARDS + [rewards.ReasoningGymScore(), rewards.MathAnswer(), rewards.FilledSchema(validate=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@cases("rows", 3)
@given(
    lines=st.lists(LINES, min_size=1, max_size=5),
    suffix=st.sampled_from([".jsonl", ".json"]),
    ends=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
)
def test_files(folder, lines, suffix, ends):
    path = folder / f"data{suffix}"
    path.write_bytes(ends.join(lines))
    try:
        rows = read_json(path)
    except ConfigError as error:
        assert str(path) in str(error) and ("line " in str(error) or "item " in str(error) or "the file" in str(error))
        return
    assert all(isinstance(row, dict) for row in rows)
    data = FilePrompts(str(path), val_size=1, required=["prompt"])
    for read in (
        lambda: data.rows("train"),
        lambda: data.rows("val"),
        lambda: PairSource(str(path)).rows(),
        lambda: PairSource(str(path), format="hh").rows(),
    ):
        try:
            for row in read():
                normalised(row["prompt"])
        except ConfigError:
            pass


@cases("rows", 3)
@given(ROWS)
def test_rows_that_pass_the_checks_can_be_scored(row):
    row = {"id": "0", "prompt": "?", "group_size": 2, "group_correct": 1, "solution_correct": True} | row
    for reward in CHECKED:
        try:
            reward.check_columns(row)
        except ConfigError:
            continue
        batch = batch_of(["a", "42"], [row])
        correct = torch.tensor([1.0, 0.0])
        batch.rewards |= {other.correctness: correct for other in REWARDS if hasattr(other, "correctness")}
        assert reward(batch).shape == (2,)


TOKENIZERS = [reasoner_tokenizer(), assistant_tokenizer()]


@cases("rows", 3)
@given(st.text() | MESSAGES | JSON)
def test_prompts_are_encoded_or_refused(prompt):
    for tokenizer in TOKENIZERS:
        try:
            check_rows([{"prompt": prompt}], "the rows")
            ids = encode_prompt(tokenizer, prompt)
        except ConfigError:
            return
        assert ids and all(isinstance(i, int) for i in ids)


@cases("texts")
@given(COMPLETIONS, st.sampled_from(["<eos>", "</think>", "<assistant>", "<pad>", "<user>"]), COMPLETIONS)
def test_no_text_becomes_a_control_token(before, spelling, after):
    text = before + spelling + after
    for tokenizer in TOKENIZERS:
        control = set(tokenizer.added_tokens_decoder) - {tokenizer.convert_tokens_to_ids("<unk>")}
        assert not control.intersection(encode_content(tokenizer, text, ()))
        assert [i for i in encode_prompt(tokenizer, text) if i in control] == [
            i for i in encode_prompt(tokenizer, "x") if i in control
        ]


def test_a_row_of_a_megabyte(folder):
    path = folder / "large.jsonl"
    path.write_text(json.dumps({"prompt": "a <eos> b\n" * 100_000}) + "\n" + json.dumps({"prompt": "x"}))
    assert [len(row["prompt"]) for row in read_rows(str(path))] == [1_000_000, 1]
