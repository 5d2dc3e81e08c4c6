"""SleepCoT in small: plausible reports, the rule base by hand, the rubric, the swap test, the data step, the chain."""

import json
import random

import pytest

from assets.make_untrained import main as make_untrained
from assets.sleep_data import main as sleep_data
from assets.writers import HTTPWriter, RuleWriter, Writer
from datamodules.sleep import (
    ADVICE,
    METRICS,
    draw_report,
    draw_rows,
    findings_of,
    plan,
    recommendation,
    report_text,
    taught,
    vocabulary,
)  # fmt: skip
from main import main
from policies import Policy, PolicyParams, load_tokenizer
from rewards import HTTPJudge, SleepRubric, SwapSensitivity
from rollouts import text_batch
from support.errors import ConfigError
from tests.helpers import ROOT
from tests.rewards.test_failures import say, served

FINE = {"sleep": 8, "latency": 10, "efficiency": 90, "deep": 20, "rem": 20, "hrv": 60, "pulse": 60, "wakes": 1}
#: rest day for hrv:20ms pulse:88bpm ; cooler room for deep:9%
ILL = FINE | {"hrv": 20, "pulse": 88, "deep": 9}


# ---- reports and the rule base ---------------------------------------------------------------------------------------


def test_reports_are_within_their_ranges_and_can_occur():
    rng = random.Random(0)
    for findings in range(5):
        for _ in range(60):
            report = draw_report(rng, findings)
            assert len(findings_of(report)) == findings
            for name, metric in METRICS.items():
                assert metric.lowest <= report[name] <= metric.highest
            light = 100 - report["deep"] - report["rem"]
            in_bed = 60 * report["sleep"] / report["efficiency"] * 100
            assert light >= 40 and report["efficiency"] <= 100
            assert report["latency"] + 4 * report["wakes"] <= in_bed - 60 * report["sleep"] + 45
            assert not (report["hrv"] > 70 and report["pulse"] > 80)


def test_common_advice_replaces_that_of_its_findings():
    assert findings_of(ILL) == ["deep low", "hrv low", "pulse high"] and findings_of(FINE) == []
    assert plan(["deep low", "hrv low", "pulse high"]) == [
        ("rest day", ("hrv low", "pulse high")),
        ("cooler room", ("deep low",)),
    ]
    # The wakes are taken by the first pair that applies, so that the second has its latency alone.
    assert [advice for advice, _ in plan(["latency high", "deep low", "wakes high"])] == ["bedroom check", "no screens"]
    rationale, answer = recommendation(ILL)
    assert answer == "rest day for hrv:20ms pulse:88bpm ; cooler room for deep:9%"
    assert rationale.startswith(
        "sleep:8h fine latency:10min fine efficiency:90% fine deep:9% low rem:20% fine hrv:20ms low"
    )
    assert rationale.endswith("so hrv low and pulse high : rest day ; deep low : cooler room")
    assert recommendation(FINE)[1] == "keep going"
    assert all(finding.split()[0] in METRICS for needed in ADVICE for finding in needed)


def test_held_out_rows_are_others_and_come_in_pairs_for_the_swap():
    train, held_out = draw_rows(200, 1), draw_rows(40, 1, held_out=True)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    by_id = {row["id"]: row for row in held_out}
    pairs = [row for row in held_out if "pair" in row]
    assert len(pairs) == 20
    for row in pairs:
        other = by_id[row["pair"]]
        assert other["pair"] == row["id"] and other["answer"] != row["answer"]
        assert row["prompt"].endswith("what should i do ?") and report_text(other["report"]) not in row["prompt"]
    assert {row["task"].partition("-")[0] for row in train} == {"recommend", "follow_up", "knowledge"}
    words = {word for row in train + held_out for key in ("prompt", "rationale", "answer") for word in row[key].split()}
    assert words <= set(vocabulary())


# ---- the rubric ------------------------------------------------------------------------------------------------------


def graded(part, answer, report=ILL, task="recommend-3", gold=None):
    row = {"report": report, "task": task, "answer": gold or recommendation(report)[1]}
    (score,) = SleepRubric(part).evaluate([f"reasons</think>{answer}"], ["p"], **{key: [row[key]] for key in row})
    return None if score != score else score


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        # correct, personalisation, reasoning, safety, format
        ("rest day for hrv:20ms pulse:88bpm ; cooler room for deep:9%", (1, 1, 1, 1, 1)),
        ("cooler room for deep:9% ; rest day for hrv:20ms pulse:88bpm", (1, 1, 1, 1, 1)),
        ("cooler room for deep:9%", (0, 1 / 3, 1, 1, 1)),
        ("slow breathing for hrv:20ms ; evening walk for pulse:88bpm ; cooler room for deep:9%", (0, 1, 1, 1, 1)),
        ("rest day for hrv:20ms ; cooler room for deep:9%", (0, 2 / 3, 1 / 2, 1, 1)),
        ("rest day for hrv:21ms pulse:88bpm ; cooler room for deep:9%", (0, 2 / 3, 1, 0, 1)),
        ("quiet room for wakes:1", (0, 0, 0, 1, 1)),
        ("cooler room ; rest day", (0, 0, 0, 1, 0)),
        ("keep going", (0, 0, 0, 1, 1)),
        ("", (0, 0, 0, 1, 0)),
    ],
)
def test_the_rubric_by_hand(answer, scores):
    parts = ("correct", "personalisation", "reasoning", "safety", "format")
    assert tuple(graded(part, answer) for part in parts) == tuple(map(pytest.approx, scores))
    assert graded("knowledge", answer) is None


def test_parts_that_do_not_apply_abstain():
    assert graded("personalisation", "keep going", FINE) is None and graded("reasoning", "keep going", FINE) == 1
    follow = {"task": "follow_up", "gold": "no cooler room for deep:9%"}
    assert graded("correct", "no cooler room for deep:9%", **follow) == 1
    assert graded("safety", "no cooler room for deep:8%", **follow) == 0
    assert graded("reasoning", "no", **follow) is None and graded("format", "no", **follow) is None
    known = {"task": "knowledge", "gold": "pulse:40bpm to pulse:80bpm"}
    assert (
        graded("knowledge", " pulse:40bpm to  pulse:80bpm ", **known)
        == graded("correct", "pulse:40bpm to pulse:80bpm", **known)
        == 1
    )
    assert (
        graded("knowledge", "pulse:40bpm to pulse:90bpm", **known) == 0
        and graded("safety", "pulse:999bpm", **known) is None
    )
    with pytest.raises(ConfigError, match="part is 'style'; set it to one of correct, personalisation"):
        SleepRubric("style")
    with pytest.raises(ConfigError, match="needs the number 'wakes' in the column report"):
        graded("safety", "x", {name: value for name, value in ILL.items() if name != "wakes"}, gold="x")


def test_answers_that_ignore_the_report_fail_the_swap():
    rows = [
        {"id": "a", "pair": "b", "answer": "x"}, {"id": "b", "pair": "a", "answer": "y"},
        {"id": "c", "pair": "d", "answer": "x"}, {"id": "d", "pair": "c", "answer": "x"},
        {"id": "e", "answer": "x"}, {"id": "f", "pair": "elsewhere", "answer": "x"},
    ]  # fmt: skip
    texts = ["1</think>x", "2</think>x", "</think>x", "</think>y", *["</think>x"] * 8]
    scores = SwapSensitivity()(text_batch(texts, [row | {"prompt": "p<think>"} for row in rows])).tolist()
    assert scores[:4] == [0.0, 1.0, 0.0, 1.0], "sample by sample, and the reasoning does not count"
    assert all(score != score for score in scores[4:])


# ---- the data step ---------------------------------------------------------------------------------------------------


class Careless(Writer):
    """Wrong for every fifth row, without a rationale for every seventh, and only for a task where one is given."""

    def __init__(self, task=None, name="careless"):
        super().__init__(name)
        self.task, self.asked = task, []

    def write(self, rows, samples, seed):
        self.asked += rows
        texts = []
        for number, row in enumerate(rows):
            text = taught(row, random.Random(0)) if number % 5 else "<think>so</think>keep sleeping"
            text = text if number % 7 else row["answer"]
            texts.append([text] * samples if self.task in (None, row["task"].partition("-")[0]) else [])
        return texts


def written(folder):
    return [
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "val")
    ]


def test_a_teachers_text_is_kept_if_its_answer_is_right(tmp_path, capsys):
    teacher = Careless()
    sleep_data([teacher], str(tmp_path), train_size=24, val_size=8, examples=1)
    train, held_out = written(tmp_path)
    places = [number for number in range(24) if number % 5 and number % 7]
    assert [row["prompt"] for row in train] == [teacher.asked[place]["question"] for place in places]
    assert "16 of 24 rows have a text that is kept, 8 are held out" in capsys.readouterr().out
    prompt = teacher.asked[0]["prompt"]
    assert prompt.endswith(f"Input: {teacher.asked[0]['question']}\nOutput: ") and prompt.count("Input: ") == 2
    assert "hrv low and pulse high: rest day" in prompt and "pulse 40 to 80 bpm" in prompt
    sleep_data([Careless(), RuleWriter(taught)], str(tmp_path), train_size=24, val_size=8, examples=1)
    assert len(written(tmp_path)[0]) == 24, "a second teacher fills in"
    sleep_data([Careless()], str(tmp_path), train_size=24, val_size=8, examples=1, only_correct=False)
    kept = written(tmp_path)[0]
    assert len(kept) == 20 and {"keep sleeping"} < {row["answer"] for row in kept}


def test_an_endpoint_teaches(tmp_path):
    def answer(handler, body):
        say(handler, json.dumps({"texts": [f"<think>because</think>{gold}" for gold in body["answer"]]}))

    with served(answer) as (url, questions):
        sleep_data([HTTPWriter(HTTPJudge(url, columns=["answer"]))], str(tmp_path), train_size=8, val_size=4)
    train, _ = written(tmp_path)
    assert len(train) == 8 and {row["rationale"] for row in train} == {"because"}
    assert all("Healthy ranges" in prompt for body, _ in questions for prompt in body["prompts"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": [Careless("none", "mute")]}, "mute wrote nothing for 24 prompts"),
        ({"teachers": [Careless("recommend", "narrow")]}, r"no text of narrow is kept for the task '(follow|know)"),
        ({"teachers": []}, "--teachers is empty"),
        ({"samples": 0}, "--samples is 0; it must be at least 1"),
    ],
)
def test_what_gives_no_data_is_said(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        sleep_data(out=str(tmp_path), train_size=24, val_size=4, **({"teachers": [RuleWriter(taught)]} | changes))
    assert not list(tmp_path.glob("*.jsonl"))


def test_the_chain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_untrained("tiny_sleeper", "runs/sleep_cot/base", 16, 1)
    sleep_data([RuleWriter(taught)], "runs/sleep_cot", train_size=40, val_size=8)
    tokenizer = load_tokenizer("runs/sleep_cot/base")
    for row in written(tmp_path / "runs/sleep_cot")[0]:
        text = f"{row['prompt']} {row['rationale']} {row['answer']}"
        assert tokenizer.unk_token_id not in tokenizer(text, add_special_tokens=False)["input_ids"]
    for name, more in (("model", []), ("answers_only", [f"--config={ROOT}/configs/sleep_cot/answers_only.yaml"])):
        main(
            [
                *("fit", f"--config={ROOT}/configs/sleep_cot.yaml", *more, "--trainer.max_steps=2"),
                *("--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
                *("--trainer.val_check_interval=2", "--data.batch_size=4", "--model.sampling.max_new_tokens=4"),
            ]
        )
        assert Policy(PolicyParams(f"runs/sleep_cot/{name}")).model.config.hidden_size == 16
