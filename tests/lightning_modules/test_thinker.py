"""Thinker: the dialogue's transitions, the rewards of its turns, the balance of verdicts, evaluation and resume."""

import math

import pytest
import torch

from datamodules import ThinkerDemonstrations
from datamodules.thinker import turn_prompt
from environments import Conversation, ThinkerDialogue, Turn, TurnBudgets, TurnPrompts
from lightning_modules import Evaluation, Shaping, Thinker
from lightning_modules.core.turn_credit import turn_returns
from lightning_modules.thinker import turn_values
from objectives import GroupNorm
from policies import Policy, PolicyParams
from policies.supervised import encode_responses
from rewards import BalancedVerdict, ExactAnswer, FinalAnswer, Format, LikelySummary, TurnReward
from rollouts import BatchPlan, EmbeddedEngine, RolloutBatch, SamplingParams, Turns
from support.errors import ConfigError
from tests.helpers import ROOT, build, fit, quiet_trainer, sums
from tests.helpers.batches import batch_of_texts
from tests.helpers.talks import Sometimes

ROW = {"id": "1", "prompt": "2+2=?", "answer": "4"}
RIGHT, WRONG, YES, NO = "</think>4", "</think>5", "so</think>Yes", "so</think>No"


def held(environment, texts, row=ROW, opened=True):
    """(rewards of the turns, what the user said, budgets) of a dialogue whose policy says these texts."""
    conversation = Conversation(row, 0, 1000, opened=opened)
    rewards, asked, budgets = [], [], []
    for number, text in enumerate(texts):
        conversation.turns.append(Turn(text, len(text), "eos"))
        reply = environment.reply(conversation)
        rewards.append(reply.reward)
        if reply.ends:
            assert number == len(texts) - 1, "it ended early"
            return rewards, asked, budgets
        asked.append(reply.messages[0]["content"])
        budgets.append(reply.max_tokens)
    raise AssertionError("it goes on")


def dialogue(**options):
    prompts = TurnPrompts("<problem> <answer>? <budget>", "wrong: <answer>", "short <budget>")
    return ThinkerDialogue(ExactAnswer(), TurnBudgets(4, 5, 6, 7), prompts, **options)


@pytest.mark.parametrize(
    ("transition", "texts", "rewards"),
    [
        ("truth", [RIGHT, YES], [1, 1]),
        ("truth", [RIGHT, NO], [1, 0]),
        ("truth", [RIGHT, "maybe"], [1, 0]),
        ("truth", [WRONG, YES, WRONG], [0, 0, 0]),
        ("truth", [WRONG, NO, RIGHT, RIGHT], [0, 1, 1, 1]),
        ("truth", ["cut of", NO, RIGHT, WRONG], [0, 1, 1, 0]),
        ("verdict", [RIGHT, YES], [1, 1]),
        ("verdict", [RIGHT, NO, WRONG], [1, 0, 0]),
        ("verdict", [WRONG, YES], [0, 0]),
        ("verdict", [WRONG, NO, RIGHT], [0, 1, 1]),
        ("verdict", [WRONG, "no verdict that is closed", RIGHT], [0, 0, 1]),
    ],
)
def test_truth_or_verdict_decides_which_turn_follows(transition, texts, rewards):
    assert held(dialogue(transition=transition), texts)[0] == rewards


def test_a_summary_at_inference_follows_any_slow_answer():
    assert held(dialogue(transition="verdict", summarises=True), [WRONG, NO, WRONG, RIGHT])[0] == [0, 1, 0, 1]


def test_the_user_states_problem_answer_and_budget():
    _, asked, budgets = held(dialogue(), [WRONG, NO, RIGHT, RIGHT])
    assert asked == ["2+2=? 5? 5", "wrong: 5", "short 7"] and budgets == [5, 6, 7]
    assert dialogue().max_turn_tokens == 4 and dialogue().max_turns == 4
    assert turn_prompt("<answer><answer> <other>", answer="<problem>", problem="x") == "<problem><problem> <other>"


def test_a_message_that_does_not_begin_in_a_think_block_is_an_answer_as_a_whole():
    assert held(dialogue(), ["4", "Yes"], opened=False)[0] == [1, 1]


@pytest.mark.parametrize("row", [{"id": "1", "prompt": "?"}, {"id": "1", "prompt": "?", "answer": None}])
def test_a_row_without_an_answer_gets_no_rewards_and_still_a_dialogue_by_verdict(row):
    assert held(dialogue(transition="verdict"), [WRONG, NO, RIGHT], row)[0] == [None, None, None]
    assert held(dialogue(), [WRONG, NO], row)[0] == [None, None]


def test_settings_that_make_no_sense_are_refused(reasoner):
    with pytest.raises(ConfigError, match=r"environment\.budgets\.slow is 0"):
        TurnBudgets(slow=0)
    with pytest.raises(ConfigError, match="environment.judge is Format, which does not judge correctness"):
        ThinkerDialogue(Format())
    with pytest.raises(ConfigError, match="decay is 1"):
        BalancedVerdict(decay=1)
    with pytest.raises(ConfigError, match="turn is -1"):
        TurnReward(-1)
    with pytest.raises(ConfigError, match="needs the policy, which only lightning_modules.Thinker"):
        LikelySummary()(batch_of_texts(["1"]))
    with pytest.raises(ConfigError, match="TurnReward.* come without one"):
        TurnReward(0)(batch_of_texts(["1"]))
    with pytest.raises(ConfigError, match="Thinker: environment is NoneType"):
        Thinker(PolicyParams(reasoner), [], environment=None)
    with pytest.raises(ConfigError, match="data.blind 2"):
        ThinkerDemonstrations(blind=2)


# ---- rewards --------------------------------------------------------------------------------------------------------


def batch_of_turns(rewards, lengths=2):
    """One prompt; by row, what the environment gave for its turns, each of which has so many tokens."""
    rows, count = len(rewards), max(map(len, rewards))
    number = torch.full((rows, count * lengths), -1)
    for row, given in enumerate(rewards):
        number[row, : len(given) * lengths] = torch.arange(len(given)).repeat_interleave(lengths)
    padded = [[*map(float, given), *[math.nan] * (count - len(given))] for given in rewards]
    reasons = [["eos"] * len(given) for given in rewards]
    turns = Turns(number, torch.tensor(padded), reasons, {}, torch.zeros(rows, dtype=torch.long))
    return RolloutBatch(
        prompt_ids=torch.ones(1, 1, dtype=torch.long), prompt_mask=torch.ones(1, 1).bool(),
        completion_ids=torch.arange(number.numel()).view_as(number), completion_mask=number >= 0,
        action_mask=number >= 0, behaviour_logprobs=torch.zeros(number.shape), finish_reasons=["eos"] * rows,
        rows=[ROW], turns=turns,
    )  # fmt: skip


@pytest.mark.parametrize("accuracy", [0.125, 0.5, 0.75])
def test_a_verifier_that_always_says_yes_earns_what_one_that_always_says_no_earns(accuracy):
    right = [number < accuracy * 8 for number in range(8)]
    reward = BalancedVerdict()
    reward.observe(batch_of_turns([[is_right] for is_right in right]))
    yes = reward(batch_of_turns([[is_right, is_right] for is_right in right])).mean()
    no = reward(batch_of_turns([[is_right, not is_right] for is_right in right])).mean()
    assert float(yes) == pytest.approx(accuracy * (1 - accuracy)) and float(no) == pytest.approx(float(yes))


def test_the_trailing_accuracy_is_a_moving_average_that_a_checkpoint_keeps():
    reward = BalancedVerdict(decay=0.75, smallest=0.1)
    assert reward.p == 0.5 and reward(batch_of_turns([[1, 1], [0, 1], [0, 0]])).tolist() == [0.5, 0.5, 0]
    reward.observe(batch_of_turns([[1, 0], [0, 0], [0, 0], [0, 0]]))
    assert reward.p == 0.25, "the first rollout's accuracy"
    reward.observe(batch_of_turns([[1, 0], [math.nan, 0]]))
    assert reward.p == pytest.approx(0.75 * 0.25 + 0.25), "rows without a grade do not count"
    again = BalancedVerdict(decay=0.75, smallest=0.1)
    again.load_state_dict(reward.state_dict())
    assert again.p == reward.p and again.state_dict() == reward.state_dict()
    again.load_state_dict({})
    assert again.p == 0.5
    for _ in range(40):
        reward.observe(batch_of_turns([[1, 1]]))
    assert reward.p == 0.9 and reward(batch_of_turns([[1, 1]])).item() == pytest.approx(0.1)


def test_the_last_answer_decides():
    batch = batch_of_turns([[1, 0], [0, 1, 1], [1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]])
    assert FinalAnswer()(batch).tolist() == [1, 1, 0, 0, 1] and FinalAnswer().weight == 0
    assert FinalAnswer()(batch_of_turns([[1, 0], [math.nan, math.nan]])).isnan().tolist() == [False, True]


def test_each_reward_goes_to_its_own_turn():
    batch = batch_of_turns([[0, 1, 1, 1], [1, 0]])
    rewards = [TurnReward(0, name="fast"), BalancedVerdict(), TurnReward(2, name="slow"), TurnReward(3, name="summary")]
    batch.rewards = {reward.name: reward(batch) for reward in rewards}
    total = torch.stack(list(batch.rewards.values())).nansum(0)
    returns = turn_returns(batch, total + torch.tensor([0.0, 0.25]), rewards)
    expected = [[0, 0.5, 1, 1], [1, 0.25, math.nan, math.nan]]
    assert torch.equal(returns.nan_to_num(-1), torch.tensor(expected).nan_to_num(-1))


def test_numbers_of_turns_by_hand():
    values = turn_values(batch_of_turns([[1, 1], [1, 0], [0, 1, 1, 0], [0, 0, 0]]))
    assert {name: round(float(values[name].nanmean()), 3) for name in values if "truncated" not in name} == {
        "fast_accuracy": 0.5, "fast_length": 2, "verify_accuracy": 0.5, "verify_length": 2,
        "slow_accuracy": 0.5, "slow_length": 2, "reached_slow": 0.5, "summary_accuracy": 0, "summary_length": 2,
        "reached_summary": 0.25, "verify_tpr": 0.5, "verify_tnr": 0.5,
    }  # fmt: skip


# ---- training -------------------------------------------------------------------------------------------------------


START, VERIFIER = (str(ROOT / f"assets/{name}") for name in ("tiny_thinker", "tiny_verifier"))


class OddDigit(ExactAnswer):
    """An answer is right if it ends with an odd digit, so that both kinds occur in every turn."""

    def score(self, batch):
        return [float(text[-1:] in tuple("13579")) for text in batch.completions]

    def gold(self, row):
        return None


def thinking(**parts):
    """A model that knows the turns, at the shipped budgets but for the fast one."""
    prompts = TurnPrompts("<problem> <answer>. Right?", "Wrong. <problem>", "In short?")
    settings = {
        "environment": ThinkerDialogue(OddDigit(), TurnBudgets(16, 90, 66, 12), prompts),
        "sampling": SamplingParams(300),
        "batch": BatchPlan(6, 4),
    }
    return build(START, parts.pop("rewards", []), Thinker, **(settings | parts))


def test_a_rollout_follows_the_truth_and_an_evaluation_the_verdicts():
    module = thinking(evaluation=Evaluation(samples=2))
    trainer = fit(module, 2, seed=1, validate_every=1)
    batch, rewards = module.last_rollout, module.last_rollout.turns.rewards
    counts = batch.turns.counts
    assert torch.equal(counts == 2, rewards[:, 0] == 1), "it ends behind a right fast answer"
    assert torch.equal(counts == 4, rewards[:, 2] == 1), "a summary follows a right slow answer"
    assert {2, 4} <= {*counts.tolist()} <= {2, 3, 4}
    for evaluated in module.last_validation:
        said_yes = evaluated.turns.counts == 2
        assert evaluated.turns.counts.max() <= 3
        truths = evaluated.turns.rewards[:, :2]
        assert not (said_yes & (truths[:, 0] != truths[:, 1])).any(), "a Yes is true where the answer is right"
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val/pass@1"] == pytest.approx(logged["val/reward/final"])
    for name in ("fast_accuracy", "verify_tnr", "slow_length", "reached_slow", "reward/verify"):
        assert f"val/{name}" in logged and f"train/{name}" in logged
    assert logged["train/trailing_accuracy"] == pytest.approx(min(max(module.rewards[1].trailing, 0.05), 0.95), abs=0.2)
    assert module.environment.transition == "truth"


def test_a_turn_learns_from_its_own_reward_and_compares_itself_with_the_same_turns():
    module = thinking(advantage=GroupNorm("none"), batch=BatchPlan(2, 8))
    fit(module, 1, seed=1)
    batch = module.last_rollout
    for turn, name in enumerate(("fast", "verify", "slow")):
        scores = batch.rewards[name].view(2, 8)
        expected = (scores - scores.nanmean(1, keepdim=True)).flatten()
        for row in range(16):
            tokens = batch.advantages[row][batch.turns.number[row] == turn]
            assert torch.allclose(tokens, expected[row].expand(len(tokens)), atol=1e-6)
    assert not batch.advantages[~batch.action_mask].any()


def test_the_likelihood_of_a_summary_is_a_plain_forward_pass_under_the_fast_prompt():
    module = thinking()
    fit(module, 1, seed=1, data=sums(levels=(2,)))
    batch, found = module.last_rollout, 0
    policy = Policy(PolicyParams(START))
    with torch.no_grad():
        logprobs = batch.rewards["summary_likelihood"]
        for row, given in enumerate(batch.turns.rewards.tolist()):
            grade = given[3] if len(given) > 3 else math.nan
            if math.isnan(grade) or not grade:
                assert math.isnan(logprobs[row]) if math.isnan(grade) else logprobs[row] == 0
                continue
            prompt = batch.prompt_ids[row // 4][batch.prompt_mask[row // 4]]
            summary = batch.completion_ids[row][batch.turns.number[row] == 3]
            logits = policy.model(torch.cat([prompt, summary])[None]).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, summary[:, None]).sum()
            assert float(logprobs[row]) == pytest.approx(float(expected), abs=1e-3)
            found += 1
    assert found, "the seed gives at least one right summary"


def test_predictions_follow_the_verdicts_and_need_no_answers():
    module = thinking()
    module.configure_model()
    module.trainer = quiet_trainer()
    records = module.predict_step([{"id": "a", "prompt": "1+1=?"}], 0)
    assert all(len(record["turn_rewards"]) in (2, 3) for record in records)


def test_credit_by_completion_is_possible():
    module = thinking(shaping=Shaping())
    fit(module, 1, seed=1)
    assert module.last_rollout.advantages.dim() == 1


# ---- supervised start -----------------------------------------------------------------------------------------------


def test_demonstrations_are_dialogues_that_the_environment_leads(reasoner):
    """Every demonstrated dialogue ends where the environment ends it, with the same words of the user."""
    data = ThinkerDemonstrations(train_size=60, val_size=4, seed=1)
    data.setup("fit")
    environment = ThinkerDialogue(
        ExactAnswer(), prompts=TurnPrompts("<problem> <answer>. Right?", "Wrong. <problem>", "In short?")
    )
    lengths = set()
    for row in data.train_data:
        own = [turn["content"] for turn in row["response"] if turn["role"] == "assistant"]
        if len(own) == 4 and own[2].rsplit(">", 1)[1] != row["answer"]:
            continue  # a slow answer with a slip, where training would end
        rewards, asked, _ = held(environment, own, row)
        assert asked == [turn["content"] for turn in row["response"] if turn["role"] == "user"]
        assert row["response"][0]["learned"] or not rewards[0]
        lengths.add(len(own))
    assert lengths == {2, 4}
    ids, _, learned = encode_responses(Policy(PolicyParams(reasoner)), data.train_data[:8], 400)
    assert ids.shape == learned.shape


def test_what_is_learned_from_a_conversation_is_what_the_policy_chose():
    """The ids and the mask of a conversation as a demonstration are those of the rollout that it comes from."""
    policy = Policy(PolicyParams(VERIFIER))
    prompts = TurnPrompts("<problem> <answer>. Right? <eos>", "<problem>", "<problem>")
    environment = ThinkerDialogue(Sometimes(), TurnBudgets(60, 80, 60, 60), prompts)
    rows = [{"id": str(n), "prompt": f"{n}+{n}=?", "answer": "0"} for n in range(5, 12, 2)]
    torch.manual_seed(0)
    sampling = SamplingParams(400)
    batch = EmbeddedEngine().generate(
        policy, [policy.encode(row["prompt"]) for row in rows], rows, 2, sampling, environment=environment
    )
    compared = []
    for row, texts in enumerate(batch.turn_texts):
        if "length" in batch.turns.finish_reasons[row]:
            continue
        conversation = Conversation(rows[row // 2], 0, 1000, opened=True)
        turns = []
        for text in texts:
            conversation.turns.append(Turn(text, 1, "eos"))
            turns += [{"role": "assistant", "content": text}, *(environment.reply(conversation).messages or [])]
        response = {"prompt": rows[row // 2]["prompt"], "response": turns}
        ids, mask, learned = encode_responses(policy, [response], 500)
        start, length = len(policy.encode(response["prompt"])), int(batch.lengths[row])
        assert ids[0, start:].tolist() == batch.completion_ids[row, :length].tolist() and mask.all()
        assert learned[0, start:].tolist() == batch.action_mask[row, :length].tolist()
        compared.append(len(texts))
    assert len(compared) > 3 and max(compared) > 2
