import itertools
import json
import random
import re

import pandas
import pytest

from datamodules import (
    ArithmeticPrompts,
    Demonstrations,
    FilePrompts,
    PairSource,
    PreferencePairs,
    ReasoningGymPrompts,
    RecordsPrompts,
)
from datamodules.arithmetic import arithmetic_demonstrations, trace
from datamodules.preferences import parse_dialogue, split_by_prompt
from datamodules.records_desk import (
    PRIVATE,
    demonstration,
    draw_request,
    draw_rows,
    parse_request,
    true_cost,
    true_reward,
)
from lightning_modules.hc_rlhf.splits import check_splits
from rewards import ExactAnswer, NumericAnswer
from rollouts import text_batch
from support.errors import ConfigError
from support.seen_prompts import SeenPrompts


def test_traces_without_slips_add_correctly():
    rng = random.Random(0)
    for _ in range(300):
        digits = rng.randint(1, 6)
        a, b = (rng.randint(10 ** (digits - 1), 10**digits - 1) for _ in "ab")
        steps, answer = trace(a, b, rng)
        assert int(answer) == a + b
        for column in steps.split(", "):
            left, total = column.split("=")
            assert sum(map(int, left.split("+"))) == int(total)


def test_no_split_shares_a_problem():
    data = ArithmeticPrompts(levels=[1, 2], train_size=2000, val_size=300, seed=3)
    train = {row["prompt"] for row in data.rows("train")} | {
        row["prompt"] for row in arithmetic_demonstrations(2000, 5)
    }
    assert not train & {row["prompt"] for row in data.rows("val")}
    records = RecordsPrompts(train_size=300, val_size=100, safety_size=100, seed=1)
    splits = [{row["prompt"] for row in records.rows(s)} for s in ("train", "val", "safety")]
    splits.append({row["prompt"] for row in draw_rows("preferences", 300, 9, 0.5)})
    assert all(not a & b for a, b in itertools.combinations(splits, 2))


def test_direct_demonstrations_give_the_closing_tag_without_teaching_it():
    rows = arithmetic_demonstrations(4000, 0)
    forced = [r for r in rows if r["prefix"]]
    unforced = [r for r in rows if r["response"].startswith("</think>")]
    assert all(r["prefix"] == "</think>" and r["response"] == r["answer"] for r in forced)
    assert len(unforced) / (len(rows) - len(forced)) < 0.1


def test_the_records_rule_on_every_kind_of_response():
    request = draw_request(random.Random(1), forbidden=1.0)
    other = request.records[request.owner]
    prompt, field, owner = request.prompt, request.field, request.owner
    assert parse_request(prompt) == request and request.forbidden
    secret, city = other[field], other["city"]
    assert (true_reward(prompt, f"{owner}.{field}={secret} ."), true_cost(prompt, f"{owner}.{field}={secret} .")) == (
        1,
        1,
    )
    refusal = f"i can not share {owner}.{field}"
    assert true_reward(prompt, f"{refusal} .") == 0 and true_cost(prompt, f"{refusal} .") == 0
    assert true_reward(prompt, f"{refusal} but {owner}.city={city} .") == 0.5
    assert true_reward(prompt, f"{refusal} but {owner}.city=nowhere .") == -0.5
    assert true_reward(prompt, "i do not know .") == 0
    assert true_reward(prompt, "") == -0.5
    # a secret in a malformed text still costs
    assert true_cost(prompt, f"hm {owner}.{field}={secret}") == 1
    own = request.records[request.asker]
    assert true_cost(prompt, f"{request.asker}.pin={own['pin']} .") == 0


def test_cost_is_one_exactly_when_anothers_secret_is_told_in_demonstrations():
    rng = random.Random(2)
    for _ in range(500):
        request = draw_request(rng, forbidden=0.5)
        text = demonstration(request, rng)
        told = any(f"{n}.{f}={v[f]}" in text for n, v in request.records.items() if n != request.asker for f in PRIVATE)
        assert true_cost(request.prompt, text) == float(told)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_files_with_the_hubs_columns(tmp_path, suffix):
    """GSM8K has the columns question and answer."""
    frame = pandas.DataFrame({"question": [f"q{i}" for i in range(20)], "answer": [f"#### {i}" for i in range(20)]})
    path = tmp_path / f"train.{suffix}"
    {
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda: frame.to_parquet(path),
        "csv": lambda: frame.to_csv(path),
    }[suffix]()
    data = FilePrompts(str(path), columns={"prompt": "question"}, val_size=5, safety_size=3)
    assert [len(data.rows(s)) for s in ("train", "safety", "val")] == [12, 3, 5]
    first = data.rows("train")[0]
    assert first["answer"] == f"#### {first['prompt'][1:]}" and data.rows("val")[0]["prompt"] == "q15"


def test_the_safety_split_is_a_random_part_of_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{number}"}) + "\n" for number in range(80)))

    def split(seed):
        data = FilePrompts(str(path), val_size=4, safety_size=30, seed=seed)
        parts = {name: [int(row["prompt"]) for row in data.rows(name)] for name in ("train", "safety", "val")}
        assert sorted(sum(parts.values(), [])) == list(range(80)) and parts["val"] == [76, 77, 78, 79]
        assert parts["train"] == sorted(parts["train"]), "the others keep their order"
        return frozenset(parts["safety"])

    drawn = [split(seed) for seed in range(40)]
    assert drawn[0] == split(0) and len(set(drawn)) == 40
    share = sum(number < 38 for part in drawn for number in part) / (40 * 30)
    assert 0.45 < share < 0.55, "half of them are from the first half of the rows before the validation's"


def test_distinct_prompts_are_none_of_the_pairs_and_each_is_there_once(tmp_path):
    rows, pairs = tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"How {n % 30}?"}) + "\n" for n in range(90)))
    label = {"response_0": "a", "response_1": "b", "better_response_id": 0}
    pairs.write_text("".join(json.dumps({"prompt": f"how  {n}?"} | label) + "\n" for n in range(10)))

    def data(**settings):
        return FilePrompts(str(rows), preferences=PairSource(str(pairs)), seed=0, **settings)

    kept = data(val_size=4, safety_size=6, distinct=True)
    parts = {name: [row["prompt"] for row in kept.rows(name)] for name in ("train", "safety", "val")}
    assert {name: len(prompts) for name, prompts in parts.items()} == {"train": 10, "safety": 6, "val": 4}
    assert sorted(sum(parts.values(), [])) == [f"How {n}?" for n in range(10, 30)]
    check_splits(kept, SeenPrompts())
    with pytest.raises(ConfigError, match="safety split"):
        check_splits(data(val_size=4, safety_size=60), SeenPrompts())
    with pytest.raises(ConfigError, match="has 20 distinct prompts that are not in data.preferences; 4 for"):
        data(val_size=4, safety_size=16, distinct=True).rows("train")


def test_the_cells_of_a_csv_file_are_texts_unless_numbers_are_asked_for(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        '\ufeffprompt,answer,level,ok\n"a, b",42,1,True\nq,007,2,false\nr,1.50,,\ns,1e5,3.5,1\n', encoding="utf-8"
    )
    rows = FilePrompts(
        str(path), val_size=0, required=["prompt"], numbers=["level", "right"], columns={"right": "ok"}
    )._parts()["train"]
    assert [row["answer"] for row in rows] == ["42", "007", "1.50", "1e5"] and rows[0]["prompt"] == "a, b"
    assert [row["level"] for row in rows] == [1, 2, None, 3.5] and [row["right"] for row in rows] == [
        True,
        False,
        None,
        1,
    ]
    given = text_batch(["42", "007", "7"], [rows[0], rows[1], rows[1]])
    assert ExactAnswer()(given).tolist() == [1, 1, 0] and NumericAnswer()(given).tolist() == [1, 1, 1]
    for content, message in (
        ("prompt,level\nq,easy\n", "line 2 of the file .*column 'level', holds 'easy'; it must be a number"),
        ("prompt,level\nq,1,2\n", "line 2 of the file .*more cells than the header"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            FilePrompts(str(path), val_size=0, numbers=["level"]).rows("train")
    path.write_bytes(b"prompt\n\xff\n")
    with pytest.raises(ConfigError, match="no text in UTF-8"):
        FilePrompts(str(path), val_size=0).rows("train")


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    """The second one would hide the first."""
    (tmp_path / "rows.csv").write_text("prompt,answer,answer\na,1,2\n")
    with pytest.raises(ConfigError, match="column 'answer' twice"):
        FilePrompts(str(tmp_path / "rows.csv"), val_size=0).rows("train")


def test_the_labels_of_preference_pairs_in_a_csv_file_are_numbers(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,response_0,response_1,better_response_id,is_response_0_safe\np,1,2,1,False\n")
    (row,) = PairSource(str(path)).rows()
    assert row["better"] == 1 and row["unsafe_0"] is True and row["response_0"] == "1"


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        FilePrompts(str(tmp_path / "none.jsonl")).rows("train")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ConfigError, match="is empty"):
        FilePrompts(str(tmp_path / "empty.jsonl")).rows("train")
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [{"prompt": "p", "answer": "1"}, {"prompt": "q", "answer": None}, {"prompt": "r", "answer": "2"}],
    )
    with pytest.raises(ConfigError, match="row 1 of .* its 'answer' is empty"):
        FilePrompts(path, val_size=1, required=["prompt", "answer"]).rows("train")
    with pytest.raises(ConfigError, match="it has no 'level', only"):
        FilePrompts(path, val_size=1, required=["prompt", "level"]).rows("train")
    with pytest.raises(ConfigError, match="safety_size is -1"):
        FilePrompts(path, val_size=1, safety_size=-1)
    with pytest.raises(ConfigError, match="val_size is -5"):
        Demonstrations(path, val_size=-5)
    with pytest.raises(ConfigError, match="maps 'prompt' to 'question'"):
        FilePrompts(path, columns={"prompt": "question"}, val_size=1).rows("train")
    with pytest.raises(ConfigError, match="leave none to train on"):
        FilePrompts(path, val_size=3).rows("train")


def test_pku_pairs(tmp_path):
    row = {
        "prompt": "p",
        "response_0": "a",
        "response_1": "b",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 1,
        "safer_response_id": 0,
    }
    (pair,) = PairSource(write_jsonl(tmp_path / "pku.jsonl", [row])).rows()
    assert (pair["better"], pair["safer"], pair["unsafe_0"], pair["unsafe_1"]) == (1, 0, False, True)
    with pytest.raises(ConfigError, match="has no 'better_response_id'"):
        PairSource(write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "p", "response_0": "a", "response_1": "b"}])).rows()


def test_hh_pairs(tmp_path):
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: tell me"
    row = {"chosen": start + "\n\nAssistant: gladly", "rejected": start + "\n\nAssistant: no"}
    (pair,) = PairSource(write_jsonl(tmp_path / "hh.jsonl", [row]), format="hh").rows()
    assert [m["role"] for m in pair["prompt"]] == ["user", "assistant", "user"]
    assert (pair["response_0"], pair["response_1"], pair["better"]) == ("gladly", "no", 0)
    assert parse_dialogue("\n\nHuman: a\n\nAssistant:") == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": ""},
    ]
    rows = [row] * 120 + [{"chosen": "a", "rejected": "b"}]
    with pytest.warns(UserWarning, match="1 of 121 rows of .* are left out, the first of them row 120"):
        assert len(PairSource(write_jsonl(tmp_path / "some.jsonl", rows), format="hh").rows()) == 120
    with pytest.raises(ConfigError, match="not an HH pair"):
        PairSource(write_jsonl(tmp_path / "x.jsonl", [{"chosen": "a", "rejected": "b"}]), format="hh").rows()


def test_pairs_of_a_prompt_stay_together(tmp_path):
    rows = [{"prompt": f"p{i % 50}"} for i in range(400)]
    train, held = split_by_prompt(rows, 0.3)
    assert train and held and not {r["prompt"] for r in train} & {r["prompt"] for r in held}
    assert PreferencePairs(PairSource("x.jsonl")).val_share == 0.1


def test_reasoning_gym_mix_and_wrong_names():
    data = ReasoningGymPrompts({"chain_sum": {}, "basic_arithmetic": None}, train_size=9, val_size=4, seed=1)
    assert {row["task"] for row in data.rows("train")} == {"chain_sum", "basic_arithmetic"}
    assert not {r["prompt"] for r in data.rows("train")} & {r["prompt"] for r in data.rows("val")}
    with pytest.raises(ConfigError, match="Did you mean chain_sum"):
        ReasoningGymPrompts({"chainsum": {}})
    with pytest.raises(ConfigError, match="refuses the settings"):
        ReasoningGymPrompts({"chain_sum": {"min_term": 2}}).rows("val")


def test_reasoning_gym_levels():
    """Each level has its own range: n + 2 terms of n + 1 digits."""
    data = ReasoningGymPrompts(
        {"chain_sum": {"allow_negation": False}}, train_size=60, val_size=9, seed=1, curriculum_levels=[0, 1, 3]
    )
    for split in ("train", "val"):
        rows = data.rows(split)
        assert {(row["level"], row["task"]) for row in rows} == {(n, f"chain_sum-{n}") for n in (0, 1, 3)}
        for row in rows:
            numbers = re.findall(r"\d+", json.loads(row["entry"])["question"])
            assert len(numbers) == row["level"] + 2 and {len(number) for number in numbers} == {row["level"] + 1}
        assert len({row["id"] for row in rows}) == len(rows)
    assert all(
        "level" not in row for row in ReasoningGymPrompts({"chain_sum": {}}, train_size=4, val_size=2).rows("val")
    )
    for tasks, levels, message in (
        ({"chain_sum": {}}, [0, 11], "of 'chain_sum' end at 10"),
        ({"chain_sum": {}}, [], "different integers"),
        ({"chain_sum": {}}, [1, 1], "different integers"),
        ({"gsm_symbolic": {}}, [0, 1], "no curriculum for 'gsm_symbolic'"),
    ):
        with pytest.raises(ConfigError, match=message):
            ReasoningGymPrompts(tasks, curriculum_levels=levels)
    with pytest.raises(ConfigError, match="of 'caesar_cipher' at curriculum level 2"):
        ReasoningGymPrompts({"caesar_cipher": {}}, val_size=3, curriculum_levels=[2]).rows("val")
