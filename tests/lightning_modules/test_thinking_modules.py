"""AdaptThink and AutoThink from end to end on a tiny untrained reasoner."""

import math
import warnings
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from callbacks import Stage, StageSchedule
from lightning_modules import GRPO, AdaptThink, AutoThink, Evaluation, Forcing, ModeRewards, Reference, Shaping
from lightning_modules.core import thinking_stats
from lightning_modules.core.reference_rewards import prompt_key
from policies import PolicyParams
from rewards import ExactAnswer, FunctionReward, LengthPenalty, NumericAnswer
from rollouts import BatchPlan, Mode, RolloutBatch, SamplingParams
from support.errors import ConfigError
from tests.helpers import adamw, build, fit, sums, weights

SHORT = SamplingParams(max_new_tokens=8)


class Answered(FunctionReward):
    is_correctness = True


def short_answer(completions):
    """Right for about half of what an untrained model answers at once, so that there is something to learn."""
    return [float(len(text.rsplit("</think>", 1)[-1]) % 2) for text in completions]


def adapt(model, rewards=None, **parts):
    small = {
        "reference": Reference(samples=2),
        "evaluation": Evaluation(sampling=SHORT),
        "optimizer": adamw(1e-2, weight_decay=0.01),
    }
    return build(model, [Answered(short_answer)] if rewards is None else rewards, AdaptThink, **(small | parts))


def auto(model, rewards=None, **parts):
    small = {"evaluation": Evaluation(sampling=SHORT), "optimizer": adamw(1e-2, weight_decay=0.01)}
    return build(model, [Answered(short_answer)] if rewards is None else rewards, AutoThink, **(small | parts))


def train(module, steps, callbacks=(), data=None, **options):
    return fit(module, steps, callbacks, data=data or sums((1, 2, 3), train_size=24, val_size=9), seed=5, **options)


def test_a_drawn_end_token_ends_the_completion(reasoner, monkeypatch):
    """The first token is the policy's action, although the engine is forced to take it."""
    module = adapt(reasoner)

    def first_tokens(logprobs, uniform):
        first = AdaptThink.first_tokens(module, logprobs, uniform)
        first.tokens[3] = [module.policy.eos_token_ids[0]]
        return first

    monkeypatch.setattr(module, "first_tokens", first_tokens)
    train(module, 1)
    assert int(module.last_rollout.lengths[3]) == 1 and module.last_rollout.finish_reasons[3] == "eos"


@pytest.mark.parametrize("method", [adapt, auto])
def test_a_begun_turn_is_refused_before_the_first_rollout(reasoner, method, monkeypatch):
    data, module = sums(), method(reasoner)
    (begun, *_) = rows = data.rows("train")
    begun["prompt"] = [{"role": "user", "content": "1+2=?"}, {"role": "assistant", "content": "It is "}]
    monkeypatch.setattr(data, "rows", lambda split: rows)
    monkeypatch.setattr(module.engine, "generate", None)
    with pytest.raises(ConfigError, match="begins the assistant's turn with 'It is '"):
        train(module, 1, data=data)


@pytest.mark.parametrize("start", ["sampled", "fixed"])
def test_half_of_each_group_answers_at_once_with_the_right_behaviour(reasoner, start):
    every_row = Shaping(entropy_bonus=1e-6)  # the update computes also rows without signal, whose ratios count below
    forcing = Forcing(thinking_first_token=start, start_word="1+")
    module = adapt(reasoner, forcing=forcing, delta=0.3, shaping=every_row)
    metrics = train(module, 1).callback_metrics
    batch, close = module.last_rollout, module.form.closing[0]
    forced = (batch.completion_ids[:, 0] == close).view(4, 4)
    assert forced.tolist() == [[True, True, False, False]] * 4
    assert bool((batch.action_mask == batch.completion_mask).all()), "forced tokens are actions"
    module.reference_means = {key: 0.0 for key in module.reference_means}
    untrained = adapt(reasoner)
    untrained.configure_model()
    first = next_logprobs(untrained, batch)
    for row in range(16):
        p = first[row // 4].exp()
        expected = math.log(0.5)
        if row % 4 >= 2 and start == "sampled":
            expected += math.log(float(p[batch.completion_ids[row, 0]]) / (1 - float(p[close])))
        assert float(batch.behaviour_logprobs[row, 0]) == pytest.approx(expected, abs=1e-4)
    assert int(batch.own_first[3]) == (1 if start == "sampled" else 2)
    assert float(metrics["train/forced_fraction"]) == 0.5
    assert float(metrics["train/p_close_first"]) == pytest.approx(float(first.exp()[:, close].mean()), abs=1e-5)
    at_once = batch.completion_ids[:, 0] == close
    ratios = torch.where(at_once, first.exp()[:, close].repeat_interleave(4) / 0.5, 0)[at_once]
    if start == "sampled":
        rest = (1 - first.exp()[:, close].repeat_interleave(4)[~at_once]) / 0.5
        assert float(metrics["train/first_token_ratio"]) == pytest.approx(
            float(torch.cat([ratios, rest]).mean()), rel=1e-3
        )


def next_logprobs(module, batch):
    with torch.no_grad():
        rows = [ids[mask] for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
        return torch.stack([module.policy.model(row[None]).logits[0, -1].log_softmax(-1) for row in rows])


def test_advantages_subtract_the_initial_policys_reward_and_reward_needs_a_closed_block(reasoner):
    module = adapt(reasoner, delta=0.25)
    train(module, 1)
    batch = module.last_rollout
    raw, well = batch.rewards["short_answer"], module.form.well_formed(batch)
    at_once = module.form.modes(batch) == Mode.NO_THINKING
    assert not bool(well.all()) and bool(well.any())
    for row in range(16):
        reference = module.reference_means[prompt_key(batch.rows[row // 4])]
        assert float(batch.advantages[row]) == pytest.approx(
            0.25 * float(at_once[row]) + float(raw[row] * well[row]) - reference, abs=1e-6
        )


def test_the_reference_is_measured_once_and_found_again(reasoner, capsys):
    train(module := adapt(reasoner), 1)
    assert "Measuring the initial policy: 2 completions" in capsys.readouterr().out
    train(again := adapt(reasoner), 1)
    assert "Measuring" not in capsys.readouterr().out and again.reference_means == module.reference_means
    train(adapt(reasoner, reference=Reference(samples=3)), 1)
    train(adapt(reasoner, sampling=SamplingParams(6), reference=Reference(samples=2)), 1)
    assert capsys.readouterr().out.count("Measuring") == 2
    module.reference_means.clear()
    with pytest.raises(ConfigError, match="no reference reward of the prompt"):
        module.advantages(module.last_rollout)


@pytest.mark.parametrize("make", [adapt, auto])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(reasoner, tmp_path, make):
    def stages():
        short = {"sampling.max_new_tokens": 6}
        if make is auto:
            return [
                StageSchedule(
                    [Stage(0, {"stage": 1}), Stage(2, {"stage": 2} | short, 5e-3, True), Stage(5, {"stage": 3})]
                )
            ]
        return [StageSchedule([Stage(0), Stage(2, {"delta": 0.5} | short, 5e-3, True)])]

    train(whole := make(reasoner), 6, callbacks=stages())
    trainer = train(make(reasoner), 4, callbacks=stages())
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    assert torch.load(tmp_path / "four.ckpt", weights_only=True)
    second = make(reasoner, **({"reference": Reference(2, cache=False)} if make is adapt else {}))
    train(second, 6, callbacks=stages(), ckpt_path=tmp_path / "four.ckpt")
    assert torch.equal(weights(whole), weights(second))
    assert second.sampling.max_new_tokens == 6 and second.trainer.optimizers[0].param_groups[0]["lr"] == 5e-3
    assert make is adapt or second.stage == 3


def test_stages_are_checked(reasoner):
    with pytest.raises(ConfigError, match="must begin with 0"):
        StageSchedule([Stage(1)])
    with pytest.raises(ConfigError, match="sampling.max_tokens"):
        train(auto(reasoner), 1, callbacks=[StageSchedule([Stage(0, {"sampling.max_tokens": 3})])])
    with pytest.raises(ConfigError, match="lr_scheduler overwrites it"):
        module = auto(reasoner, lr_scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o))
        train(module, 1, callbacks=[StageSchedule([Stage(0, lr=1e-3)])])


def test_auto_think_balances_by_the_whole_batch(reasoner):
    module = auto(
        reasoner,
        mode_rewards=ModeRewards(gamma=0.2, slope=3.0),
        rewards=[Answered(short_answer), LengthPenalty(100.0, 0.5)],
    )
    metrics = train(module, 1).callback_metrics
    batch = module.last_rollout
    thinking = module.form.modes(batch) != Mode.NO_THINKING
    share = float(thinking.float().mean())
    penalty = min(max((share - 0.2) * 3, 0), 1)
    assert float(metrics["train/thinking_rate"]) == pytest.approx(share)
    assert float(metrics["train/balance_thinking"]) == pytest.approx(penalty)
    returns = module.returns(batch)
    for row in range(16):
        if thinking[row]:
            right = bool(batch.rewards["short_answer"][row] >= 1) and "</think>" in batch.completions[row]
            naive, target = float(right), float(right) - 1
            expected = (1 - penalty) * naive + penalty * target - 0.5 * float(batch.lengths[row]) / 100
            assert float(returns[row]) == pytest.approx(expected, abs=1e-6)
    prompt = batch.prompt_ids[0][batch.prompt_mask[0]].tolist()
    assert module.policy.tokenizer.decode(prompt).endswith("<think>\n...\n")
    assert batch.opened == [True] * 16


class Rates(L.Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rates.append(float(trainer.callback_metrics["train/thinking_rate"]))


@pytest.mark.parametrize(("unparsed", "expected"), [(None, 0.0), (-1.0, -1.0)])
def test_an_answer_at_once_from_which_nothing_can_be_extracted(reasoner, unparsed, expected):
    """The official code's 0 by default: more than a wrong answer, which earns -1."""
    table = ModeRewards() if unparsed is None else ModeRewards(unparsed_no_thinking=unparsed)
    module = auto(reasoner, [NumericAnswer()], stage=2, mode_rewards=table)
    assert graded(module, ["</think>I cannot tell", "</think>12", "</think>13"], "12") == [expected, 2, -1]
    # What thinks earns 0 either way, and so does what never closes its block.
    assert graded(module, ["well</think>I cannot tell", "well</think>13", "well"], "12") == [0, 0, 0]


@pytest.mark.parametrize(("answer", "expected"), [(None, [-1, 2, 2]), ("first", [2, -1, 2])])
def test_what_is_graded_if_a_completion_closes_its_block_twice(reasoner, answer, expected):
    """After the last one by default; the official code takes what stands between the first and the second."""
    table = ModeRewards() if answer is None else ModeRewards(answer=answer)
    module = auto(reasoner, [NumericAnswer()], stage=2, mode_rewards=table)
    texts = ["</think>12</think>13", "</think>13</think>12", "</think>12"]
    assert graded(module, texts, "12") == expected
    with pytest.raises(ConfigError, match="set it to 'last' or 'first'"):
        ModeRewards(answer="second")


def graded(module, texts, answer):
    """Returns of completions with these texts."""
    module.configure_model()
    policy = module.policy
    ids = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, ids))
    tokens = torch.tensor([row + [policy.pad_token_id] * (width - len(row)) for row in ids])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids])
    prompt = torch.tensor([module.prompt_tokens({"prompt": "5+7=?"})])
    batch = RolloutBatch(
        prompt_ids=prompt, prompt_mask=prompt >= 0, completion_ids=tokens, completion_mask=mask, action_mask=mask,
        behaviour_logprobs=mask.float(), finish_reasons=["eos"] * len(texts),
        rows=[{"id": "1", "prompt": "5+7=?", "answer": answer}], decoder=policy.decode,
    )  # fmt: skip
    batch._completions = texts
    batch.rewards = module.score(batch)
    return module.returns(batch).tolist()


def test_a_mechanism_without_effect_is_pointed_out_once(reasoner):
    for module, message in (
        (adapt(reasoner, forcing=Forcing(share=0.0)), "no completion was forced"),
        (auto(reasoner, batch=BatchPlan(1, 2)), "all completions had the same mode"),
        (auto(reasoner), "all completions had the same mode"),
    ):
        module.effect.patience, watch = 2, Rates()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(module, 4, callbacks=[watch])
        said = [str(w.message) for w in caught if message in str(w.message)]
        one_mode = [rate in (0.0, 1.0) for rate in watch.rates]
        absent = isinstance(module, AdaptThink) or any(map(all, zip(one_mode, one_mode[1:], strict=False)))
        assert len(said) == int(absent)


def test_validation_of_every_method_tells_modes_and_levels_apart(reasoner):
    module = GRPO(PolicyParams(reasoner), [ExactAnswer()], batch=BatchPlan(4, 4), sampling=SHORT)
    metrics = train(module, 1, validate_every=1).callback_metrics
    (batch,) = module.last_validation
    modes = module.thinking_stats.form.modes(batch)
    levels = torch.tensor(batch.column("level"))
    assert float(metrics["val/thinking_rate"]) == pytest.approx(float((modes == Mode.THINKING).float().mean()))
    assert float(metrics["val/unclosed_rate"]) == pytest.approx(float((modes == Mode.UNCLOSED).float().mean()))
    for level in (1, 2, 3):
        rows = levels == level
        assert float(metrics[f"val/length/addition-{level}"]) == pytest.approx(
            float(batch.lengths[rows].float().mean())
        )
        assert float(metrics[f"val/thinking_rate/addition-{level}"]) == pytest.approx(
            float((modes[rows] == Mode.THINKING).float().mean())
        )


def test_statistics_of_processes_are_weighted_by_their_counts(reasoner, monkeypatch):
    """One process saw three thinking rows, the other none: the mean is over rows, and no process hangs."""
    module = GRPO(PolicyParams(reasoner), [ExactAnswer()], batch=BatchPlan(4, 4), sampling=SHORT)
    module.configure_model()
    parts = []
    for length, count in ((3.0, 3), (5.0, 1)):
        stats = thinking_stats.ThinkingStats.of(module.policy)
        stats._count("length/thinking", torch.full((count,), length))
        parts.append(dict(stats.sums))
    parts.append({})
    monkeypatch.setattr(thinking_stats, "gathered", lambda item: parts)
    assert stats.metrics() == stats.means == {"length/thinking": pytest.approx(3.5)}


def test_reasoning_behind_the_think_block_is_counted():
    texts = ["</think>Wait, it is 3", "</think>3", "</think>await 3", "wait ... </think>3"]
    modes = torch.tensor([Mode.NO_THINKING] * 3 + [Mode.THINKING])
    stats = thinking_stats.ThinkingStats(SimpleNamespace(modes=lambda batch: modes))
    rows = {"lengths": torch.ones(4), "rows": [{}] * 4, "group_size": 1, "completions": texts}
    stats.add(SimpleNamespace(**rows))
    assert stats.metrics()["implicit_thinking"] == pytest.approx(1 / 3)


def test_settings_that_cannot_work_are_refused(reasoner, assistant):
    for changes, message in (
        ({"delta": -0.1}, "delta is -0.1"),
        ({"forcing": Forcing(share=0.1)}, "both modes need at least one"),
        ({"rewards": []}, "AdaptThink has no rewards"),
    ):
        with pytest.raises(ConfigError, match=message):
            adapt(reasoner, **changes)
    with pytest.raises(ConfigError, match="AutoThink needs a reward that judges correctness"):
        auto(reasoner, rewards=[LengthPenalty(10.0)])
    for make in (adapt, auto):
        with pytest.raises(ConfigError, match="configs/cold_start_smollm2.yaml"):
            train(make(assistant), 1)
    for wrong in ({"gamma": 2.0}, {"alpha": -1.0}):
        with pytest.raises(ConfigError, match="needs gamma from 0 to 1"):
            ModeRewards(**wrong)
    with pytest.raises(ConfigError, match="scale is 0"):
        LengthPenalty(0)
