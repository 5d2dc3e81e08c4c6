"""Answers that are right or wrong by their value, in every form that people and models write them; golds that cannot be
read."""

import math

import pytest
import torch

from objectives import KTAE, PassAtK
from objectives.voting import weighted_vote
from rewards import (
    AnswerReward,
    CosineLength,
    ExactAnswer,
    FunctionReward,
    GradedAnswer,
    Guarded,
    KimiLength,
    Laser,
    LaserDE,
    MathAnswer,
    MultipleChoice,
    NumericAnswer,
    PerTask,
    ReasoningGymScore,
    Reward,
    SatAssignment,
    ShorterBetter,
    correct_rows,
)
from rewards.base import Failure
from rewards.choices import stated_letter, stated_letters
from rewards.number_text import last_number, number_of
from rewards.self_check import report_golds
from rollouts import text_batch
from support.errors import ConfigError
from tests.rewards.answer_forms import FORMS


def graded(reward, gold, *texts):
    return reward(
        text_batch(texts, [{"id": str(i), "prompt": "?", "answer": gold} for i in range(len(texts))])
    ).tolist()


# ---- equivalence -----------------------------------------------------------------------------------------------------


def test_the_table_of_forms():
    forms = [(kind, *form) for kind, listed in FORMS.items() for form in listed]
    assert len(forms) >= 200 and all({True, False} <= {right for _, _, right in listed} for listed in FORMS.values())
    rows = [{"id": str(i), "prompt": "?", "answer": gold} for i, (_, gold, _, _) in enumerate(forms)]
    scores = MathAnswer()(text_batch([text for _, _, text, _ in forms], rows)).tolist()
    assert [form for form, score in zip(forms, scores, strict=True) if score != form[3]] == []


GOLDS = [
    r"3\sqrt{13}", r"2\sqrt2", r"\text{Evelyn}", "3:45", r"\text{(C)}", r"\frac 59", r"\frac43", r"\{1\pm\sqrt{5},-2\}",
    r"11,\! 111,\! 111,\! 100", r"\$32,\!348",
    r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}", r"\left(\frac{3}{5},\frac{8}{3}\right]", r"x \in [-2,7]",
    r"5x - 7y + 11z + 4 = 0", r"864 \mbox{ inches}^2",
    "2516_8", r"90^\circ", ".0000672", r"(-\infty, 2) \cup (3, \infty)", "HTHT", "Yes", r"10\%", "1e-5", "答案", "Москва",
    "1.5 hours", r"\infty", r"\emptyset", "x=5",
]  # fmt: skip


@pytest.mark.parametrize(
    "form", ["%s", "\\boxed{%s}", "$%s$", "So the answer is $%s$.", "thoughts</think>\n\\[ \\boxed{%s} \\]"]
)
def test_a_gold_answer_is_right_against_itself_and_wrong_against_others(form):
    rows = [{"id": str(i), "prompt": "?", "answer": gold} for i, gold in enumerate(GOLDS)]
    assert MathAnswer()(text_batch([form.replace("%s", gold) for gold in GOLDS], rows)).tolist() == [1] * len(GOLDS)
    shifted = MathAnswer()(text_batch([form.replace("%s", gold) for gold in GOLDS[1:] + GOLDS[:1]], rows)).tolist()
    assert shifted == [0] * len(GOLDS)


@pytest.mark.parametrize("gold", ["", " ", "???", r"\frac{1}{", "}", r"\begin{pmatrix} 1", "$$", None])
def test_a_gold_answer_that_says_nothing_abstains(gold):
    assert all(math.isnan(score) for score in graded(MathAnswer(), gold, "5", "\\boxed{0}", str(gold)))
    assert math.isnan(
        graded(NumericAnswer(), gold if gold != r"\frac{1}{" and gold != r"\begin{pmatrix} 1" else "", "1")[0]
    )
    if not (gold or "").strip():
        for reward in (MathAnswer(), ExactAnswer(), NumericAnswer()):
            with pytest.raises(ConfigError, match="row '7'"):
                reward.check_columns({"id": "7", "prompt": "?", "answer": gold})


def test_several_accepted_answers():
    cases = [
        (
            MathAnswer,
            [r"\frac12", "3"],
            ["\\boxed{0.5}", "\\boxed{3}", "\\boxed{4}"],
            [1, 1, 0],
            "\\boxed{3, 1/2}",
            "\\boxed{3, 1/2, 9}",
        ),
        (NumericAnswer, [2, 3], ["2.0", "so 3", "4"], [1, 1, 0], "3 and 2", "3, 2 and 9"),
        (ExactAnswer, ["Paris", "Lyon"], ["Paris", "Lyon", "Rome"], [1, 1, 0], "Lyon, Paris", "Lyon, Paris, Rome"),
        (MultipleChoice, ["A", "C"], ["A", "(c)", "B"], [1, 1, 0], "A and C", "A, C and D"),
    ]
    for kind, golds, texts, expected, all_of_them, wrong in cases:
        assert graded(kind(), golds, *texts) == expected, kind
        assert graded(kind(), [*golds, None], *texts) == expected, "tables fill lists up"
        everything = kind(accept="all")
        assert isinstance(everything, AnswerReward)
        assert graded(everything, golds, all_of_them, texts[0], wrong) == [1, 0, 0], kind
    with pytest.raises(ConfigError, match="'some'; set it to 'any' or 'all'"):
        ExactAnswer(accept="some")
    for kind in (ExactAnswer, NumericAnswer, MathAnswer):
        assert (kind(0.5, "half").weight, kind(0.5, "half").name) == (0.5, "half"), (
            "weight and name come first, as in every reward"
        )


def test_numbers_of_every_form():
    written = {
        "0.00001": 1e-5, "1e-05": 1e-5, "1e+22": 10**22, "1.2e6": 1200000, ".5": 0.5, "1,5": 5, "1,234": 1234,
        "1,2345": 2345, "12,345,678": 12345678, "\u22125": -5,
        "\u20135": -5, "3\u20135": 5, r"\frac{3}{4}": 0.75, r"-\frac34": -0.75, r"2\frac{1}{2}": 2.5, "3 1/2": 3.5,
        "\u00bd": 0.5, "3\u00bd": 3.5, r"10,\!080": 10080,
        "10{,}080": 10080, r"3 \times 10^{5}": 300000, "3\u00d710\u2077": 3e7, "\u0664\u0662": 42, "\uff14\uff12": 42,
        "1\u202f234": 1234, "1'234": 1234, "-2.5 cm": -2.5,
    }  # fmt: skip
    assert {text: float(last_number(text)) for text in written} == pytest.approx(written)
    assert [last_number(text) for text in ("no", "3/0", "9" * 5000, "9" * 4000 + "." + "9" * 4000, "1e99999")] == [
        None
    ] * 5
    assert number_of("12 apples") is None and number_of(" 12 ") == 12
    assert graded(NumericAnswer(), 0.00001, "0.00001", "-5") == [1, 0]
    assert graded(NumericAnswer(), 1e22, "1e22", "22") == [1, 0]


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("I choose B, not A.", "B"), ("(c)", "C"), ("c", "C"), ("答案是C", "C"), ("正确答案为A。", "A"), ("选B", "B"),
        ("答え：B", "B"), ("정답은 C", "C"), ("Ответ: B", "B"),
        ("La réponse est C", "C"), ("\uff23", "C"), ("The answer is not A but B.", "B"),
        ("A is wrong, so it must be B.", "B"), ("B is correct. A is incorrect.", "B"),
        ("I rule out A and B. The answer is D.", "D"), ("It can't be A. So C", "C"), ("B rather than C", "B"),
        ("Answer: C. It is better than A.", "C"), ("not A", ""),
        ("Both A and B are wrong; C.", "C"), (r"\boxed{A, C}", "AC"), ("A and C", "AC"),
        ("The answer is A or B.", "AB"), (r"\boxed{B) 5 apples}", "B"),
    ],
)  # fmt: skip
def test_letters_with_negations_and_in_other_scripts(text, letters):
    assert "".join(stated_letters(text)) == letters
    assert stated_letter(text) == (letters if len(letters) == 1 else None)


# ---- who decides what is right ---------------------------------------------------------------------------------------


def lengths_batch(texts, rows, lengths):
    batch = text_batch(texts, rows)
    time = max(lengths)
    mask = torch.arange(time) < torch.tensor(lengths)[:, None]
    batch.completion_ids, batch.completion_mask, batch.action_mask = (
        torch.zeros_like(mask, dtype=torch.long),
        mask,
        mask,
    )
    return batch


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_a_scale_does_not_change_which_completions_are_right(scale):
    """Every reward that asks another one which completions are right sees its scores before scaling."""
    judge = PerTask(
        {"default": GradedAnswer(ExactAnswer(), FunctionReward(lambda completions: [1.0] * len(completions)))},
        {"default": scale},
        name="graded_answer",
    )
    rows = [{"id": str(i), "prompt": "?", "answer": "7", "task": "default"} for i in range(4)]
    seen = []
    for judged in (judge, judge.rewards["default"]):
        judged.name = "graded_answer"
        batch = lengths_batch(["7", "8", "7", "x"], rows, [3, 5, 9, 2])
        batch.rewards["graded_answer"] = judged(batch)
        others = [Laser(6), LaserDE(), ShorterBetter(), KimiLength(), CosineLength(9)]
        for reward in others:
            reward.correctness = "graded_answer"
        seen.append([reward(batch).tolist() for reward in others] + [correct_rows([judged], batch).tolist()])
    assert seen[0] == seen[1]
    assert seen[0][-1] == [1, 0, 1, 0] and seen[0][0] == [0.5, 0, 0, 0]


def test_a_missing_box_counts_as_wrong_in_pass_rates():
    reward = SatAssignment()
    rows = [{"id": "f", "prompt": "?", "clause": "(A) & (!B)", "answer": "10"}] * 8
    batch = text_batch(["\\boxed{10}"] * 4 + ["10"] * 4, rows)
    scores = reward(batch)
    assert scores.tolist() == [1] * 4 + [-1] * 4
    assert float(reward.unscaled(scores, batch).mean()) == 0.5


class Flaky(Reward):
    """Right, abstains, fails, wrong."""

    may_abstain, waits, max_failure_rate, is_correctness = True, True, 0.5, True

    def score(self, batch):
        return [1.0, math.nan, Failure("timeout", "late"), 0.0]


def test_what_a_judge_cannot_say_is_passed_on():
    always = FunctionReward(lambda completions: [1.0] * len(completions))
    for reward in (
        GradedAnswer(Flaky(), always),
        PerTask({"default": Flaky()}),
        PerTask({"default": GradedAnswer(Flaky(), always)}),
    ):
        assert reward.may_abstain and reward.waits and reward.max_failure_rate == 0.5
        batch = text_batch(["a"] * 4, [{"id": "0", "prompt": "?"}] * 4)
        scores = reward(batch)
        assert scores.isnan().tolist() == [False, True, True, False] and scores[0] == 1
        assert {name: kinds.tolist() for name, kinds in batch.failures.items()} == {reward.name: [0, 0, 2, 0]}
        assert set(batch.judges) == {reward.name} and reward.last_failure == "late"
        assert reward.unscaled(scores, batch).isnan().tolist() == [False, True, True, False]


def test_correctness_decides_which_tokens_are_keys():
    tokens, mask = torch.tensor([[1, 2], [1, 3], [4, 2], [4, 3]]), torch.ones(4, 2, dtype=torch.bool)
    totals, groups = torch.tensor([2.0, 1.0, 1.0, 2.0]), torch.zeros(4, dtype=torch.long)
    ktae = KTAE()
    base = ktae.base(totals, groups, tokens, mask)[:, None]
    keys = ktae.with_correctness(totals, groups, tokens, mask, torch.tensor([1.0, 1.0, 0.0, 0.0])) - base
    assert (keys[:2, 0] > 0.5).all() and (keys[2:, 0] < -0.5).all() and keys[:, 1].abs().max() < 1e-6
    totals[1] = math.nan
    correct = torch.tensor([1.0, math.nan, 0.0, 0.0])
    assert ktae.with_correctness(totals, groups, tokens, mask, correct)[1].tolist() == [0, 0]
    totals = torch.tensor([2.0, 0.5, 1.0, 2.0])
    advantages = PassAtK(1).with_correctness(totals, groups, None, None, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert (advantages > 0).tolist() == [True, True, False, False]


def test_equivalent_answers_vote_together():
    texts = ["So it is \\boxed{12}.", "Thus \\boxed{12.0}", "\\boxed{13}", "none"]
    rows = [{"id": "0", "prompt": "?", "answer": "12", "task": "t"}]
    for judge in (MathAnswer(), PerTask({"t": MathAnswer()}), Guarded(MathAnswer()), NumericAnswer()):
        batch = text_batch(texts, rows * 4)
        batch.rows, batch.prompt_ids, batch.prompt_mask = rows, batch.prompt_ids[:1], batch.prompt_mask[:1]
        groups = judge.extracted(batch)
        assert groups[0] == groups[1] != groups[2], judge
        assert weighted_vote(groups[:3], [0.4, 0.4, 0.5]) == 0
    assert weighted_vote(["13", "12", "12"], [0.0, 0.0, 0.0]) == 1, "the majority where nobody is trusted"


# ---- what comes back from a reward -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"score": [1.0, 2.0]}, "a dict"), ([{"score": 1.0}, 2.0], "a dict.*completion 0"), ("ab", "a str"),
        (["a", 1.0], "a str .'a'.*completion 0"), ([[1.0], [2.0]], "a list"),
        ([[1.0, 2.0], [3.0]], "a list"), (None, "NoneType"), (1.0, "a float"), ([1.0], "1.* numbers for 2"),
        (torch.ones(2, 2), r"\(2, 2\) numbers for 2"),
        ([1.0, "0.5"], "a str .'0.5'.*completion 1"), ([1.0, 1j], "a complex"), ([1.0, torch.ones(2)], "a Tensor"),
        (iter([1.0, 2.0]), "iterator"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_numbers_is_named(returned, message):
    class Own(Reward):
        def score(self, batch):
            return returned

    batch = text_batch(["a", "b"], [{"id": "0", "prompt": "?"}] * 2)
    for reward in (Own(name="mine"), FunctionReward(lambda completions: returned, name="mine")):
        with pytest.raises(ConfigError, match=f"'mine'.*{message}") as raised:
            reward(batch)
        assert "\n" not in str(raised.value)


def test_numbers_of_any_type_are_taken():
    import numpy as np

    batch = text_batch(["a", "b"], [{"id": "0", "prompt": "?"}] * 2)
    for returned in (
        [1, True],
        (1.0, 1),
        np.ones(2),
        np.array([1, 1]),
        torch.ones(2),
        [np.float32(1), torch.tensor(1.0)],
    ):
        assert FunctionReward(lambda completions, given=returned: given)(batch).tolist() == [1, 1]


# ---- golds are checked before anything is sampled --------------------------------------------------------------------


def test_rows_whose_own_answer_earns_nothing_are_named():
    rows = [{"id": f"r{i}", "prompt": "?", "answer": str(i), "task": "t"} for i in range(3000)]
    rows[5]["answer"] = r"\frac{1}{"
    few = rows[:40]
    for reward in (MathAnswer(), PerTask({"t": MathAnswer()}), GradedAnswer(MathAnswer()), Guarded(MathAnswer())):
        (problem,) = reward.self_check(few)
        assert problem.id == "r5" and math.isnan(problem.score)
        assert "row 'r5'" in report_golds(reward, few) and "1 of 40" in report_golds(reward, few)
        assert reward.self_check(rows[6:]) == [] and report_golds(reward, rows[6:]) is None
    with pytest.raises(ConfigError, match="2 of 2 rows.*Nothing could be learned"):
        report_golds(MathAnswer(), [{"id": "a", "answer": "}"}, {"id": "b", "answer": "}"}])


def test_every_correctness_reward_pays_its_own_gold():
    import json

    import reasoning_gym

    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=0)[0]
    row = {"id": "0", "prompt": "?", "answer": "B", "clause": "(B)", "entry": json.dumps(entry, default=str)}
    for reward in (ExactAnswer(), MathAnswer(), MultipleChoice(), ReasoningGymScore()):
        assert reward.gold(row) is not None and reward.self_check([row]) == []
    assert SatAssignment().self_check([row | {"answer": "01"}]) == []
    assert len(SatAssignment().self_check([row | {"answer": "10"}])) == 1
    assert FunctionReward(lambda completions: [0.0] * len(completions)).self_check([row]) == []
