"""Critique fine-tuning in small: writers, critiques that agree with the verifier, the chain, the best checkpoint."""

import json
import random
import re

import pytest
import torch
import yaml

from assets.critiques import main as critiques
from assets.make_untrained import main as make_untrained
from assets.writers import HTTPWriter, ModelWriter, RuleWriter, Writer
from callbacks import BaselineValidation, ExportPolicy
from datamodules import ArithmeticPrompts, Demonstrations, FilePrompts, RunningSumPrompts, ScoredDemonstrations
from datamodules.critiques import critique, running_sum_demonstrations, shown, solution
from lightning_modules import SFT, ScoredSFT
from main import main
from policies import Policy, PolicyParams
from rewards import Abstain, ExactAnswer, HTTPJudge, PerTask, Verdict
from rewards.self_verify import verdict_of
from rollouts import SamplingParams
from support.errors import ConfigError
from tests.ecosystem.test_trl_formats import jsonl
from tests.helpers import ROOT, fit, sgd, weights
from tests.rewards.test_failures import say, served

PROBLEM = {"prompt": "58+67=?", "answer": "125"}
RIGHT = ["8+7+0=15, 5+6+1=12</think>125", "7+8+0=15, 5+6+1=12</think>125", "it is</think>125"]
WRONG = ["8+7+0=14, 5+6+1=12</think>124", "8+7+0=15, 5+6+0=11</think>115", "no idea</think>1"]


class Scripted(Writer):
    """Writes what it is told by the solution that a row has, the same text for every sample but numbered."""

    def __init__(self, texts, name="scripted"):
        super().__init__(name)
        self.told, self.asked = texts, []

    def write(self, rows, samples, seed):
        self.asked += rows
        if isinstance(self.told, list):
            return [self.told for _ in rows]
        return [[self.told(row)] * samples for row in rows]


def verdicts(right="right", wrong="wrong"):
    """A teacher that knows the answer and ends with one of these words."""
    return Scripted(lambda row: f"checked: {right if row['solution'].endswith('125') else wrong}", "teacher")


def data_step(out, solutions=RIGHT + WRONG, teachers=None, **changes):
    options = {"solvers": [Scripted(solutions)], "held_out": 2} | changes
    critiques(PROBLEM, teachers or [verdicts()], [ExactAnswer()], str(out), **options)
    names = ("critiques", "unseen", "solution")
    return [[json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()] for name in names]


# ---- the data --------------------------------------------------------------------------------------------------------


def test_a_critique_is_kept_if_its_verdict_agrees_with_the_verifier(tmp_path, capsys):
    """Of three teachers one is right, one says the opposite, one gives no verdict."""
    teachers = [verdicts(), verdicts("wrong", "right"), verdicts("yes", "no")]
    kept, unseen, (solution,) = data_step(tmp_path, teachers=teachers)
    assert solution == {"prompt": "58+67=?", "response": RIGHT[0]}
    assert len(kept) == len(unseen) * 2 == 4 and {row["writer"] for row in kept} == {"teacher"}
    assert "4 critiques kept (of 12; 4 without a verdict), 2 solutions held out" in capsys.readouterr().out
    for row in kept:
        assert row["response"] == f"checked: {'right' if row['solution_correct'] else 'wrong'}"
        assert "58+67=?" in row["prompt"] and "</think>" not in row["prompt"]
    assert sorted(row["solution_correct"] for row in unseen) == [False, True]
    texts = {text: text.endswith("125") for text in map(shown, RIGHT + WRONG)}
    for row in kept + unseen:
        (text,) = [text for text in texts if text in row["prompt"]]
        assert texts.pop(text) is row["solution_correct"], "each solution once, in one of the two files"
    asked = teachers[0].asked[0]
    assert "Conclusion" in asked["prompt"] and asked["problem"] == "58+67=?" and asked["solution"] in asked["prompt"]


def test_solutions_from_files_are_those_of_the_problem_that_ended(tmp_path):
    rows = [{"prompt": "58+67=?", "completion": text} for text in RIGHT + WRONG]
    others = [
        {"prompt": "1+1=?", "completion": "another</think>2"},
        {"prompt": "58+67=?", "completion": "cut off", "finish": "length"},
    ]
    file = jsonl(tmp_path / "completions.jsonl", *rows, *others, rows[0])
    kept, unseen, _ = data_step(tmp_path, solvers=[], sources=[file], per_kind=2)
    assert len(kept) + len(unseen) == 4
    with pytest.raises(ConfigError, match=r"none of 1 completions in .* is a whole one of the prompt '58\+67=\?'"):
        data_step(tmp_path, sources=[jsonl(tmp_path / "x.jsonl", others[0])])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solutions": RIGHT}, r"0 of 3 different solutions of '58\+67=\?' are wrong, .* weaker solver"),
        ({"solutions": WRONG + RIGHT[:1]}, r"1 of 4 different solutions .* are right, .* a stronger solver"),
        (
            {"teachers": [Scripted([" ", ""], "mute")]},
            r"mute wrote nothing for 4 prompts, the first 'You are an expert",
        ),
        ({"solutions": []}, "scripted wrote nothing for 1 prompts"),
        ({"teachers": [verdicts("right", "right")]}, r"no critique of a wrong solution is kept \(2 of 4; 0 without"),
        ({"teachers": [verdicts("ja", "nein")]}, r"no critique of a right solution is kept \(0 of 4; 4 without"),
        ({"teachers": [verdicts()], "words": ("Right", "right")}, "words of verdicts"),
        ({"instruction": "Is <solution> right?"}, "--instruction must contain <problem> and <solution>"),
        ({"question": "<problem>"}, "--question must contain"),
        ({"solvers": []}, "--solvers and --sources is empty"),
        ({"held_out": 0}, "--held_out is 0; it must be at least 1"),
    ],
)
def test_what_gives_no_critiques_is_said_before_the_training(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        data_step(tmp_path, **changes)
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_problem_without_the_verifiers_column_is_refused_before_anything_is_written(tmp_path):
    solver = Scripted(RIGHT)
    with pytest.raises(ConfigError, match="needs the data column 'answer'"):
        critiques({"prompt": "58+67=?"}, [verdicts()], [ExactAnswer()], str(tmp_path), solvers=[solver])
    with pytest.raises(ConfigError, match="row 0 of --problem cannot be used"):
        critiques({"answer": "125"}, [verdicts()], [ExactAnswer()], str(tmp_path), solvers=[solver])
    assert not solver.asked


def test_the_rule_follows_the_solutions_own_partial_sums():
    row = {"solution": "b4+3=7,c8+7=4 d2+4=6 e7+6=3,f1+3=4\n4"}
    told = "b4+3=7.c8+7=5!d2+4=6.e7+6=3.f1+3=4.</think>No"
    assert critique(row, random.Random(0)) == told
    row = {"solution": "b4+3=7 c8+7=5 d2+5=7 e7+7=4 f1+4=5\n5"}
    assert critique(row, random.Random(0)) == "b4+3=7.c8+7=5.d2+5=7.e7+7=4.f1+4=5.</think>Yes"
    for broken in ("no idea\n5", "b4+3=7\n7", "b4+3=x c8+7=5 d2+5=7 e7+7=4 f1+4=5\n5"):
        assert critique({"solution": broken}, random.Random(0)) == ""


def test_solutions_of_the_rule_are_worked_from_the_digits():
    rng, problem = random.Random(1), {"prompt": "a3 b4+_=_ c8+_=_ d2+_=_ e7+_=_ f1+_=_"}
    right = {solution(problem, rng, 0.0) for _ in range(200)}
    assert len(right) == 16 and {text[-1] for text in right} == {"5"}, "four separators, each in two forms"
    for text in (solution(problem, rng, 0.3) for _ in range(60)):
        steps = text.partition("</think>")[0].replace(",", " ").split()
        values = [int(step[-1]) for step in steps]
        assert [int(step[3]) for step in steps] == [3, *values[:-1]] and text[-1] == str(values[-1])
        holds = all(
            (digit + before) % 10 == value
            for digit, before, value in zip([4, 8, 2, 7, 1], [3, *values[:-1]], values, strict=True)
        )
        verdict = verdict_of(critique({"solution": shown(text)}, rng))
        assert verdict is holds and (text[-1] == "5" or not verdict)


def test_problems_and_the_starts_demonstrations():
    data = RunningSumPrompts(train_size=200, val_size=60, seed=1)
    train, held_out = data.rows("train"), data.rows("val")
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    for row in train[:20]:
        assert row["answer"] == str(sum(int(digit) for digit in re.findall(r"\d", row["prompt"])) % 10)
    rows = running_sum_demonstrations(600, 1)
    slips = [row["response"][-1] != row["answer"] for row in rows[1::2]]
    assert 0.7 < sum(slips) / 300 < 0.95, "one right in six: 0.7 per step, five steps, and slips that cancel"
    marked = [("!" in row["response"]) == row["response"].endswith("No") for row in rows[::2]]
    assert 0.8 < sum(marked) / 300 < 0.95, "one verdict in eight contradicts its critique"
    with pytest.raises(ConfigError, match=r"data\.train_size is 0"):
        RunningSumPrompts(train_size=0)


# ---- writers ---------------------------------------------------------------------------------------------------------


def test_an_endpoint_writes_texts_and_its_failures_are_left_out():
    def answer(handler, body):
        say(handler, json.dumps({"texts": [f"{prompt}!" if prompt != "b" else None for prompt in body["prompts"]]}))

    with served(answer) as (url, _):
        judge = HTTPJudge(url, retries=0, per_request=3, workers=2)
        rows = [{"prompt": prompt} for prompt in "abc"]
        assert HTTPWriter(judge).texts(rows, 2, 0) == [["a!", "a!"], [], ["c!", "c!"]]
        with pytest.raises(ConfigError, match=r"wrote nothing for 1 prompts, the first 'b' \(.*empty or not a text"):
            HTTPWriter(judge).texts([{"prompt": "b"}], 2, 0)
        with pytest.raises(ConfigError, match="sends the data column 'solution', which row"):
            HTTPWriter(HTTPJudge(url, columns=["solution"])).texts(rows, 1, 0)
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9/x wrote nothing .*no connection"):
        HTTPWriter(HTTPJudge("http://127.0.0.1:9/x", retries=0)).texts([{"prompt": "b"}], 1, 0)


def test_a_model_writes_by_seed_and_prompt_and_only_whole_texts(reasoner):
    rows = [{"prompt": f"{number}+1=?"} for number in range(3)]
    writer = ModelWriter(PolicyParams(reasoner), SamplingParams(30), batch=2)
    texts = writer.write(rows, 40, 1)
    assert 0 < sum(map(len, texts)) == 120 - writer.cut_off < 120, "completions that were cut off are left out"
    assert texts == writer.write(rows, 40, 1) != writer.write(rows, 40, 2)
    greedy = ModelWriter(PolicyParams(reasoner), SamplingParams(1, temperature=0.0))
    with pytest.raises(ConfigError, match=r"wrote nothing .* were cut off at sampling\.max_new_tokens=1"):
        greedy.texts(rows, 1, 0)
    with pytest.raises(ConfigError, match="batch is 0"):
        ModelWriter(PolicyParams(reasoner), batch=0)


# ---- training --------------------------------------------------------------------------------------------------------


def rewards():
    return [
        PerTask({"critique": Abstain(), "default": ExactAnswer()}, name="solved"),
        Verdict(dynamic=False, code_penalty=0, bare_penalty=0),
    ]


def scored(reasoner, source, prompts, lr=0.3):
    module = ScoredSFT(PolicyParams(reasoner), rewards(), sampling=SamplingParams(6), optimizer=sgd(lr), max_length=64)
    return module, ScoredDemonstrations(source, prompts, batch_size=4, train_size=8, seed=1)


def test_it_trains_as_sft_does_and_validates_by_its_rewards(reasoner, tmp_path):
    unseen = [{"id": str(i), "prompt": f"{i}?", "task": "critique", "solution_correct": i < 2} for i in range(3)]
    file = jsonl(tmp_path / "unseen.jsonl", *unseen)
    prompts = [ArithmeticPrompts(levels=[1], val_size=5, seed=1), FilePrompts(file, val_source=file)]
    module, data = scored(reasoner, "arithmetic", prompts)
    trainer = fit(module, 3, data=data, seed=0, validate_every=3)
    plain = SFT(PolicyParams(reasoner), optimizer=sgd(0.3))
    fit(plain, 3, data=Demonstrations("arithmetic", 4, train_size=8, val_size=0, seed=1), seed=0)
    assert torch.equal(weights(module), weights(plain))
    batch = module.last_validation[0]
    assert [row["id"][0] for row in batch.rows] == ["0"] * 5 + ["1"] * 3, "ids of two modules are told apart"
    assert batch.rewards["solved"].isnan().tolist() == [False] * 5 + [True] * 3
    assert batch.rewards["verdict"].isnan().tolist() == [True] * 5 + [False] * 3
    assert {"val/pass@1", "val/reward/verdict", "train/loss"} <= trainer.callback_metrics.keys()
    with pytest.raises(ConfigError, match=r"data\.prompts is empty"):
        ScoredDemonstrations("arithmetic", [])


def test_a_row_without_a_rewards_column_is_refused_before_the_training(reasoner, tmp_path):
    file = jsonl(tmp_path / "problems.jsonl", {"prompt": "1+1=?"})
    module, data = scored(reasoner, "arithmetic", [FilePrompts(file, val_source=file)])
    with pytest.raises(ConfigError, match="needs the data column 'answer'"):
        fit(module, 1, data=data, seed=0, validate_every=1)


class Scheduled(ExactAnswer):
    """A score that rises to the second validation of the training and falls after it."""

    def __init__(self):
        super().__init__()
        self.scores = [1.0, 0.0, 1.0, 0.0, 0.0]

    def self_check(self, rows):
        return []

    def score(self, batch):
        return [self.scores.pop(0)] * len(batch.finish_reasons)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_validated_weights_are_exported(reasoner, tmp_path, mode):
    """The start, whose score is high too, is no candidate; of equal scores the earliest counts."""
    module = ScoredSFT(PolicyParams(reasoner), [Scheduled()], sampling=SamplingParams(2), optimizer=sgd(0.3))
    data = ScoredDemonstrations("arithmetic", [ArithmeticPrompts(levels=[1], val_size=2, seed=1)], 4, 16, seed=1)
    export = ExportPolicy(str(tmp_path / "best"), monitor="val/reward/scheduled", mode=mode)
    trainer = fit(module, 4, [BaselineValidation(), export], data=data, seed=0, validate_every=1)
    assert trainer.global_step == 4 and export.best_step == (2 if mode == "max" else 1)
    other = ScoredSFT(PolicyParams(reasoner), [], sampling=SamplingParams(2), optimizer=sgd(0.3))
    fit(other, export.best_step, data=data, seed=0)
    exported = dict(Policy(PolicyParams(str(tmp_path / "best"))).model.named_parameters())
    for name, weight in other.policy.model.named_parameters():
        assert torch.equal(exported[name], weight), name
    again = ExportPolicy("x", monitor="val/loss")
    again.load_state_dict(export.state_dict())
    assert (again.best, again.best_step) == (export.best, export.best_step)


def test_a_metric_that_no_validation_logs_is_refused(reasoner, tmp_path):
    data = ScoredDemonstrations("arithmetic", [ArithmeticPrompts(levels=[1], val_size=2, seed=1)], 4, 16, seed=1)
    for every, message in ((None, "the run has no validation"), (1, r"the validation logged \[.*'val/pass@1'")):
        module = ScoredSFT(PolicyParams(reasoner), [ExactAnswer()], sampling=SamplingParams(2), optimizer=sgd(0.3))
        with pytest.raises(ConfigError, match=message):
            fit(module, 2, [ExportPolicy(str(tmp_path), monitor="val/x")], data=data, validate_every=every)


def test_the_chain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = [
        *("--trainer.max_steps=2", "--trainer.logger=false", "--trainer.accelerator=cpu"),
        *("--trainer.enable_progress_bar=false", "--trainer.val_check_interval=2"),
    ]
    make_untrained("tiny_reasoner", "runs/critique/untrained", 16, 1)
    few = ["--data.train_size=40", "--data.val_size=4", "--data.batch_size=4"]
    main(["fit", f"--config={ROOT}/configs/critique/1_base.yaml", *common, *few])
    settings = yaml.safe_load((ROOT / "configs/critique/2_critiques.yaml").read_text())
    writers = {"solvers": [RuleWriter(solution)], "teachers": [RuleWriter(critique)]}
    critiques(**(settings | writers | {"verifiers": [ExactAnswer()], "samples": 40, "held_out": 4}))
    kept = [json.loads(line) for line in open("runs/critique/critiques.jsonl")]
    assert all(row["response"].endswith("Yes") is row["solution_correct"] for row in kept)
    for name, more in (
        ("model", ["--data.batch_size=4"]),
        ("one_solution", [f"--config={ROOT}/configs/critique/one_solution.yaml"]),
    ):
        main(["fit", f"--config={ROOT}/configs/critique.yaml", *more, *common, "--model.sampling.max_new_tokens=4"])
        assert Policy(PolicyParams(f"runs/critique/{name}")).model.config.hidden_size == 16
