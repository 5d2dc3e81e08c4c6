"""Self-verification: rollouts of two kinds, the buffer over a resume, rewards and votes worked out by hand."""

import math
import re
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from callbacks import RolloutCheckpoint
from datamodules import ArithmeticPrompts, VerifyDemonstrations
from datamodules.arithmetic import is_held_out
from datamodules.self_verify import VerifyBuffer, check, verify_row
from lightning_modules import Evaluation, KLPenalty, SelfVerify, Shaping, Verification
from lightning_modules import self_verify as self_verify_module
from lightning_modules.core.verified_votes import vote_metrics, yes_probability
from objectives.voting import weighted_vote
from policies import Policy, PolicyParams
from rewards import FunctionReward, MathAnswer, Verdict
from rewards.self_verify import verdict_of
from rollouts import RolloutBatch, SamplingParams, text_batch
from support.errors import ConfigError
from tests.helpers import adamw, build, fit


class FirstDigit(FunctionReward):
    """Right if the completion's first character is below P in the alphabet: about half of an untrained model's."""

    is_correctness = True

    def __init__(self):
        super().__init__(lambda completions: [float(text[:1] < "P") for text in completions], name="right")


def self_verify(model, **parts):
    small = {
        "sampling": SamplingParams(max_new_tokens=6),
        "kl": KLPenalty(),
        "verification": Verification(prompt="<problem><solution>?"),
        "shaping": Shaping(),
        "optimizer": adamw(1e-2),
    }
    return build(model, [FirstDigit()], SelfVerify, **(small | parts))


class Seen(L.Callback):
    def __init__(self):
        self.found, self.metrics = [], []

    def on_train_batch_end(self, trainer, pl_module, *given):
        self.found.append(([row["id"] for row in pl_module.last_rollout.rows], pl_module.last_rollout.completions))
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.fixture
def closed(reasoner, monkeypatch):
    """A policy whose prompts leave no think block open, so that every text is an answer."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setattr("rollouts.batch.ends_open", lambda text: False)
    return reasoner


# ---- training --------------------------------------------------------------------------------------------------------


def test_half_of_a_rollout_asks_about_earlier_solutions_and_the_truth_about_them_is_kept(closed):
    module, seen = self_verify(closed), Seen()
    fit(module, 3, [seen])
    assert [sum(i.startswith("verify") for i in ids) for ids, _ in seen.found] == [0, 2, 2]
    first_ids, first_texts = seen.found[0]
    asked = {
        f"verify {first_ids[i // 4]} {text.rsplit('</think>', 1)[-1].strip()}": text[:1] < "P"
        for i, text in enumerate(first_texts)
    }
    second = [i for i in seen.found[1][0] if i.startswith("verify")]
    assert set(second) <= set(asked)
    # 16 solutions of the first rollout and 8 of each other one; verdicts are not asked about themselves.
    assert 0 < len(module.buffer.rows) <= 32 and {row["rollout"] for row in module.buffer.rows} == {0, 1, 2}
    for row in module.buffer.rows:
        assert row["task"] == "verify" and "level" not in row
        if row["rollout"] == 0:
            assert row["solution_correct"] == asked[row["id"]]
            group = first_ids.index(row["id"].split(" ")[1])
            assert (
                row["group_correct"] == sum(text[:1] < "P" for text in first_texts[4 * group : 4 * group + 4])
                and row["group_size"] == 4
            )
    assert (
        seen.metrics[2]["train/buffer"] == len(module.buffer.rows)
        and 0 <= seen.metrics[2]["train/verify_accuracy"] <= 1
    )


def test_each_kind_has_its_own_rewards_and_its_own_baseline(closed):
    module = self_verify(closed)
    module.trainer = SimpleNamespace(world_size=1)
    rows = [
        {"id": "a", "prompt": "a"},
        {"id": "q", "prompt": "q", "solution_correct": True, "group_correct": 1, "group_size": 4},
    ]
    ids = torch.zeros(8, 1, dtype=torch.long)
    batch = RolloutBatch(
        prompt_ids=ids[:2], prompt_mask=ids[:2] == 0, completion_ids=ids, completion_mask=ids == 0,
        action_mask=ids == 0, behaviour_logprobs=ids.float(), finish_reasons=["eos"] * 8, rows=rows,
        decoder=lambda ids, mask: [""] * len(ids),
    )  # fmt: skip
    batch._completions = ["A", "Z", "Z", "Z", "so Yes", "so No", "so No", "so Yes"]
    batch.rewards = module.score(batch)
    assert batch.rewards["right"][:4].tolist() == [1, 0, 0, 0] and batch.rewards["right"][4:].isnan().all()
    # One solution in four was right, so a true verdict on it earns 4 / (2 * 1).
    assert batch.rewards["verdict"][:4].isnan().all() and batch.rewards["verdict"][4:].tolist() == [2, 0, 0, 2]
    advantages = module.advantages(batch)
    assert advantages[:4].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=2e-3)  # (R - 1/4) / 0.5
    assert advantages[4:].tolist() == [1, -1, -1, 1]
    module.verdict_advantage.scale = "batch_std"  # of the verdicts alone: sqrt(4/3)
    assert module.advantages(batch)[4:].tolist() == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-3)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_asks_what_the_whole_one_asks(closed, tmp_path, stop):
    whole, seen = self_verify(closed), Seen()
    fit(whole, 4, [seen, RolloutCheckpoint(every_n_rollouts=1, keep=None, folder=str(tmp_path))])
    resumed, rest = self_verify(closed), Seen()
    fit(resumed, 4, [rest], ckpt_path=str(tmp_path / f"rollout_{stop:06d}.ckpt"))
    assert rest.found == seen.found[stop:] and resumed.buffer.rows == whole.buffer.rows
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_processes_share_one_draw(closed, monkeypatch):
    rows, asked = [{"id": str(i), "prompt": str(i)} for i in range(8)], []
    monkeypatch.setattr(self_verify_module, "gathered", lambda mine: [rows] if len(mine) == 8 else [rows[:4], rows[4:]])
    for rank, processes in ((0, 1), (0, 2), (1, 2)):
        module = self_verify(closed)
        module.buffer.add([{"id": f"verify {i}"} for i in range(30)], 0)
        loops = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=5))
        module.trainer = SimpleNamespace(world_size=processes, global_rank=rank, fit_loop=loops)
        type(module).global_rank = property(lambda self: self.trainer.global_rank)
        try:
            mixed = module.prompts(rows[:8] if processes == 1 else rows[4 * rank : 4 * rank + 4])
        finally:
            del type(module).global_rank
        asked.append([row["id"] for row in mixed])
        assert len(mixed) == 8 // processes
    assert asked[0] == asked[1] + asked[2] and sum("verify" in id for id in asked[0]) == 4


# ---- buffer, reward, vote --------------------------------------------------------------------------------------------


def test_the_buffer_forgets_by_age_and_by_number():
    buffer = VerifyBuffer(size=5, max_age=2)
    for rollout in range(4):
        buffer.add([{"id": f"{rollout}{i}"} for i in range(3)], rollout)
    assert [row["id"] for row in buffer.rows] == ["21", "22", "30", "31", "32"]
    assert buffer.draw(6, 1) == [] and len({row["id"] for row in buffer.draw(5, 1)}) == 5
    assert buffer.draw(3, 1) == buffer.draw(3, 1) and any(
        buffer.draw(3, 1) != buffer.draw(3, key) for key in range(2, 8)
    )
    buffer.add([], 9)
    assert buffer.rows == []


def test_the_question_has_problem_and_solution_and_the_rows_columns():
    row = {
        "id": "1",
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1=?"}],
        "answer": "2",
        "level": 3,
    }
    assert verify_row(row, "3", "<problem> gives <solution>") == {
        "id": "verify 1 3", "prompt": "1+1=? gives 3", "answer": "2", "task": "verify",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="<problem> and <solution>"):
        Verification(prompt="is <solution> right?")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Yes", True),
        ("it is so. no.", False),
        ("Yes, or No", False),
        ("no... yes!", True),
        ("nothing", None),
        ("", None),
        ("Yesterday", None),
    ],
)
def test_the_last_word_is_the_verdict(text, verdict):
    assert verdict_of(text) is verdict


def graded(reward, texts, row):
    ids = torch.zeros(len(texts), 1, dtype=torch.long)
    batch = RolloutBatch(
        prompt_ids=ids[:1], prompt_mask=ids[:1] == 0, completion_ids=ids, completion_mask=ids == 0,
        action_mask=ids == 0, behaviour_logprobs=ids.float(), finish_reasons=["eos"] * len(texts), rows=[row],
        decoder=lambda ids, mask: ["<think>"] * len(ids),
    )  # fmt: skip
    batch._completions = texts
    return reward(batch).tolist()


def test_the_rare_kind_pays_more_and_a_perfect_verifier_earns_one_on_average():
    earned = []
    for correct, alike in ((True, 2), (False, 6)):
        row = {"id": "q", "prompt": "q", "solution_correct": correct, "group_correct": 2, "group_size": 8}
        true, false = ("Yes", "No") if correct else ("No", "Yes")
        scores = graded(Verdict(), [f"so</think>{true}", f"so</think>{false}", f"so {true}", "so</think>"], row)
        assert scores == [pytest.approx(8 / (2 * alike)), 0, 0, 0]
        earned.append(alike * scores[0])
        assert graded(Verdict(dynamic=False), [f"so</think>{true}"], row) == [1]
    assert sum(earned) / 8 == pytest.approx(1)
    for count, verdict in ((8, "Yes"), (0, "No")):
        row = {"id": "q", "prompt": "q", "solution_correct": count == 8, "group_correct": count, "group_size": 8}
        assert graded(Verdict(), [f"so</think>{verdict}"], row) == [1]
    assert math.isnan(graded(Verdict(), ["so</think>Yes"], {"id": "1", "prompt": "1+1"})[0])


def test_verdicts_in_other_words_need_no_group():
    """A yes in the text, or the word before the conclusion, decides nothing."""
    row = {"id": "q", "prompt": "q", "solution_correct": False}
    texts = ["so</think>5 is right? Yes. Conclusion: wrong", "so</think>wrong: it is Right", "so</think>No", "wrong"]
    assert graded(Verdict(dynamic=False, words=("right", "wrong")), texts, row) == [1, 0, 0, 0]
    assert graded(Verdict(dynamic=False, words=("a.b", "a+b")), ["</think>aab", "x</think>A+B"], row) == [0, 1]
    for words in (("right", ""), ("Right", "right")):
        with pytest.raises(ConfigError, match="words of verdicts"):
            Verdict(words=words)


def test_the_penalties_of_the_larger_model():
    row = {"id": "q", "prompt": "q", "solution_correct": True, "group_correct": 8, "group_size": 8}
    texts = ["1+1=2</think>Yes", "</think>Yes", "```x```</think>Yes", "</think>", "```</think>No"]
    assert graded(Verdict(code_penalty=0.5, bare_penalty=0.5), texts, row) == [1, 0.5, 0.5, 0, -0.5 - 0.5]


def test_votes():
    answers, scores = ["7", "8", "8", "9", ""], [0.9, 0.4, 0.3, 0.2, 1.0]
    assert weighted_vote(answers, scores, 0.0) == 1  # two votes of 8
    assert weighted_vote(answers, scores, 1.0) == 0  # 0.9 against 0.7
    assert weighted_vote(answers, scores, 0.1) == 1  # 0.99 against 0.91 + 0.89
    assert weighted_vote(answers, scores, 1.0, "exponential") == 1  # 2.46 against 1.49 + 1.35
    assert weighted_vote(answers, scores, 5.0, "exponential") == 0  # 90 against 7.4 + 4.5
    assert weighted_vote(["", ""], [0.0, 0.0], 1.0) == 0 and weighted_vote(["a", "b"], [0.0, 0.0], 0.0) == 0


def test_what_an_evaluation_shows_by_hand():
    pairs = [(True, True), (True, True), (False, True), (None, True), (False, False), (True, False)]
    found = vote_metrics(
        [{"vote": True, "majority": False, "pairs": pairs[:3]}, {"vote": False, "majority": False, "pairs": pairs[3:]}]
    )
    assert found == {
        "vote": 0.5, "majority": 0, "verify_accuracy": pytest.approx(3 / 6), "yes_rate": pytest.approx(3 / 6),
        "verify_balanced": pytest.approx((2 / 4 + 1 / 2) / 2), "verify_f1": pytest.approx(2 * 2 / (4 + 3)),
    }  # fmt: skip
    assert (
        "verify_balanced" not in vote_metrics([{"vote": True, "majority": True, "pairs": [(True, True)]}])
        and vote_metrics([]) == {}
    )


def test_the_probability_of_yes_is_that_of_a_plain_forward(reasoner):
    policy = Policy(PolicyParams(reasoner))
    prompts, texts = ["12+7=? 19", "3+4"], ["ab</think>No", "Yes, c", "nothing", "No or Yes"]
    encode = lambda text: policy.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    given, wanted = [encode(text) for text in texts], [policy.encode(prompt) for prompt in prompts]
    width, longest = max(map(len, given)), max(map(len, wanted))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in given])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in given]).bool()
    prompt_ids = torch.tensor([[0] * (longest - len(row)) + row for row in wanted])
    prompt_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in wanted]).bool()
    batch = RolloutBatch(prompt_ids, prompt_mask, ids, mask, mask, ids.float(), ["eos"] * 4, [{"id": "1"}, {"id": "2"}])
    found, before = yes_probability(policy, batch), ["ab</think>", "", None, "No or "]
    assert found[2] == 0
    for i in (0, 1, 3):
        start = wanted[i // 2] + encode(before[i])
        sequence = torch.tensor([start + encode("Yes")])
        log = torch.log_softmax(policy.model(input_ids=sequence).logits[0].detach(), -1)
        expected = sum(float(log[at - 1, sequence[0, at]]) for at in range(len(start), sequence.shape[1]))
        assert float(found[i]) == pytest.approx(math.exp(expected), rel=1e-3)


def test_the_verdict_counts_in_any_case(reasoner):
    policy = Policy(PolicyParams(reasoner))
    ids = [
        policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("ab</think>no", "ab</think>yes", "ab</think>YES")
    ]
    width = max(map(len, ids))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.arange(width) < torch.tensor([len(row) for row in ids])[:, None]
    prompt = torch.tensor([policy.encode("12+7=? 19")])
    batch = RolloutBatch(prompt, prompt >= 0, tokens, mask, mask, tokens.float(), ["eos"] * 3, [{"id": "1"}])
    found = yes_probability(policy, batch)
    assert (found > 0).all() and found[0] == pytest.approx(float(found[1]), rel=1e-3)


def test_a_perfect_verifier_earns_one_where_some_solutions_pose_no_question(closed):
    module = self_verify(closed)
    module.trainer = SimpleNamespace(
        world_size=1, fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0))
    )
    batch = text_batch(["A"] * 6 + ["Z", ""], [{"id": "p", "prompt": "p"}] * 8)
    batch.rows, batch.prompt_ids, batch.prompt_mask = batch.rows[:1], batch.prompt_ids[:1], batch.prompt_mask[:1]
    batch.rewards = module.score(batch)
    module.observe(batch)
    asked = module.buffer.rows
    assert [(row["solution_correct"], row["group_correct"], row["group_size"]) for row in asked] == [
        (True, 6, 7)
    ] * 6 + [(False, 6, 7)]
    earned = [graded(Verdict(), [f"so</think>{'Yes' if row['solution_correct'] else 'No'}"], row)[0] for row in asked]
    assert sum(earned) / len(earned) == pytest.approx(1)


def test_votes_pool_equivalent_answers(closed):
    module = self_verify(closed)
    module.judge = MathAnswer()
    texts = ["So it is \\boxed{12}.", "Thus \\boxed{12.0}", "\\boxed{13}"]
    batch = text_batch(texts, [{"id": "p", "prompt": "p", "answer": "12"}] * 3)
    batch.rows, batch.prompt_ids, batch.prompt_mask = batch.rows[:1], batch.prompt_ids[:1], batch.prompt_mask[:1]
    assert module.vote(batch, torch.tensor([0.4, 0.4, 0.5]), 1.0) == [0]
    assert module.vote(batch, torch.tensor([0.0, 0.0, 0.0]), 1.0) == [0], "the majority where nobody is trusted"


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_validation_votes_and_prediction_gives_the_chosen_completion(closed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = self_verify(closed, evaluation=Evaluation(samples=4))
    trainer = fit(module, 2, validate_every=2)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {"val/vote", "val/majority", "val/yes_rate", "val/verify_accuracy", "val/pass@1"} <= set(found)
    module.verification.exponent = 0.0
    again = trainer.validate(
        module, datamodule=ArithmeticPrompts(levels=[1, 2], train_size=64, val_size=8, seed=1), verbose=False
    )[0]
    assert again["val/vote"] == again["val/majority"]
    rows = trainer.predict(module, datamodule=ArithmeticPrompts(levels=[1, 2], train_size=64, val_size=8, seed=1))[0]
    assert len(rows) == 8 and all(0 <= row["score"] <= 1 and row["completion"] for row in rows)


def apart(asked):
    at = asked[1].index("</think>")
    return asked[1][:at], asked[1][at:]


def test_demonstrations_say_the_truth_unless_blind():
    given = {}
    for blind in (0.0, 1.0):
        data = VerifyDemonstrations(
            train_size=400, val_size=4, prompt="<problem> <solution>. Right?", blind=blind, seed=1
        )
        data.setup("fit")
        asked = [
            (row["prompt"].split(" "), row["response"]) for row in data.train_data if row["prompt"].endswith("Right?")
        ]
        assert len(asked) in (266, 267) and not any(is_held_out(prompt[0]) for prompt, _ in asked)
        given[blind] = sum(
            (verdict == "</think>Yes") == ("!" not in worked) for worked, verdict in map(apart, asked)
        ) / len(asked)
        for (
            prompt,
            response,
        ) in (
            asked
        ):  # what is set beside the columns, read backwards, is the proposed result, and ! stands where it differs
            columns = re.findall(r"(\d)? ?([\d-])([=!])(?=[,;<])", response)
            assert "".join(theirs for _, theirs, _ in reversed(columns)).replace("-", "") == prompt[1].rstrip(".")
            assert all((mine == theirs) == (mark == "=") for mine, theirs, mark in columns if mine)
    assert given[0.0] == 1 and 0.35 < given[1.0] < 0.65


@pytest.mark.parametrize(
    ("steps", "carry", "proposed", "checked", "agrees"),
    [
        ("8+5+0=13, 9+8+1=18", True, "183", "381: 8+5+0=13 3=, 9+8+1=18 8=; 1=", True),
        ("8+5+0=13, 9+8+1=18", True, "83", "38: 8+5+0=13 3=, 9+8+1=18 8=; -!", False),  # a digit is missing
        ("1+2+0=3, 1+0+0=1", False, "113", "311: 1+2+0=3 3=, 1+0+0=1 1=; 1!", False),  # one too many
        ("1+2+0=3, 1+0+0=1", False, "23", "32: 1+2+0=3 3=, 1+0+0=1 2!", False),
        ("1+2+0=3, 1+0+0=1", False, "3", "3: 1+2+0=3 3=, 1+0+0=1 -!", False),
    ],
)
def test_a_check_sets_digit_beside_digit(steps, carry, proposed, checked, agrees):
    assert check(steps, carry, proposed) == (checked, agrees)


def test_mistakes_are_named(reasoner):
    with pytest.raises(ConfigError, match="judges correctness"):
        SelfVerify(PolicyParams(reasoner), [Verdict()])
    for wrong in ({"share": 1.0}, {"exponent": -1.0}, {"temperature": -0.1}):
        with pytest.raises(ConfigError, match="0 <= share < 1"):
            Verification(**wrong)
    with pytest.raises(ConfigError, match="at least 1"):
        VerifyBuffer(0)


def test_the_defaults_are_the_papers(reasoner):
    module = SelfVerify(PolicyParams(reasoner), [FirstDigit()])
    assert (module.batch.prompts_per_rollout, module.batch.group_size, module.batch.updates) == (128, 8, 2)
    assert (
        module.sampling.temperature == 0.6 and module.kl.coefficient == 0.001 and module.shaping.entropy_bonus == 0.001
    )
    assert (
        module.buffer.size,
        module.buffer.max_age,
        module.verification.exponent,
        module.verification.temperature,
    ) == (
        5000,
        60,
        1.0,
        0.0,
    )
