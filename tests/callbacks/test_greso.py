"""GRESO: skipped prompts and their number, across passes, a resume and several processes; number of further prompts."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch

from callbacks import GRESO, DifficultyLedger, GRESOSampler, RolloutCheckpoint
from datamodules import PromptSampler
from datamodules.pass_rates import Measurement
from lightning_modules.core.dynamic_sampling import refilled
from rewards import FunctionReward
from rollouts import BatchPlan, RolloutBatch, SamplingParams
from support.errors import ConfigError
from tests.helpers import build, fit, run_config, sums


def with_history(history, **options):
    greso = GRESO(**options)
    greso.ledger = DifficultyLedger()
    for number, rate in enumerate(history):
        greso.ledger.rates.add(Measurement("a", number, rate))
    return greso


@pytest.mark.parametrize(
    ("history", "chance"),
    [
        ([], 0.0),
        ([1.0, 1.0, 0.5], 0.0),  # the newest visit had signal
        ([0.0, 1.0], 0.5),
        ([0.5, 1.0, 1.0, 1.0], 0.875),
        ([0.0] * 2, 0.36),
        ([1.0] * 20, 0.99),  # never skipped for certain
        ([0.0] * 200, 0.99),
    ],
)
def test_the_chance_of_being_skipped(history, chance):
    assert with_history(history, p_easy=0.5, p_hard=0.8).skip("a") == pytest.approx(chance)
    assert with_history(history, p_easy=1.0, p_hard=1.0, step=0).skip("a") == 0


def test_thresholds_for_graded_rewards():
    assert with_history([0.99, 0.98], easy_at=0.98, hard_at=0.11).skip("a") == 0.75
    assert with_history([0.1, 0.11], easy_at=0.98, hard_at=0.11).skip("a") == 0.75
    assert with_history([0.97], easy_at=0.98, hard_at=0.11).skip("a") == 0


def follow(rates, passes=1, **options):
    """(p_easy, p_hard) after a rollout with these pass rates."""
    greso, logged = GRESO(**options), {}
    greso.ledger = SimpleNamespace(last=[Measurement(str(i), 0, rate) for i, rate in enumerate(rates)])
    greso.sampler = SimpleNamespace(passes=passes, skipped=3, considered=12)
    module = SimpleNamespace(log=lambda name, value, **how: logged.update({name: value}), batch=BatchPlan(4, 8))
    greso.on_train_batch_end(SimpleNamespace(world_size=1), module, None, None, 0)
    return (greso.p_easy, greso.p_hard), logged


def test_the_chances_follow_the_shares_from_the_second_pass_on():
    # 1 of 4 easy is more than 0.083, 0 of 4 hard is less than 0.167
    (easy, hard), logged = follow([1.0, 0.5, 0.5, 0.25])
    assert (easy, hard) == pytest.approx((0.49, 0.51))
    assert (
        logged["train/greso_easy"] == 0.25 and logged["train/greso_hard"] == 0 and logged["train/greso_skipped"] == 0.25
    )
    assert logged["train/greso_completions"] == 32 and logged["train/greso_p_easy"] == 0.5
    assert follow([1.0, 0.5, 0.5, 0.25], passes=0)[0] == (0.5, 0.5)
    assert follow([0.0, 0.0, 0.5, 0.5], p_easy=0.95, p_hard=0.05)[0] == pytest.approx((0.95, 0.05))
    assert follow([0.5] * 6, p_easy=1.0, step=0)[0] == (1.0, 0.5)


def test_how_many_further_prompts():
    greso = GRESO()
    greso.max_prompts = 30
    assert greso.further(4, 0.5) == 10 and greso.further(4, 0.0) == 5 and greso.further(4, 1.0) == 30
    greso.smallest = 8
    assert greso.further(1, 0.0) == 8


def test_dynamic_sampling_asks_for_that_many_and_leaves_out_what_is_too_much():
    def scored(names):
        tokens = torch.tensor([[ord(name)] for name in names for _ in range(2)])
        ones = torch.ones_like(tokens, dtype=torch.bool)
        scores = [value for name in names for value in ((0.0, 1.0) if name.isupper() else (1.0, 1.0))]
        return RolloutBatch(
            prompt_ids=tokens[::2], prompt_mask=ones[::2], completion_ids=tokens, completion_mask=ones,
            action_mask=ones, behaviour_logprobs=-tokens.float(), finish_reasons=["eos"] * len(tokens),
            rows=[{"id": name} for name in names], rewards={"r": torch.tensor(scores)},
        )  # fmt: skip

    asked = []

    def sample(rows):
        asked.append("".join(row["id"] for row in rows))
        return scored(asked[-1])

    seen = []

    def size(missing, without):
        seen.append((missing, without))
        return 3

    spare = iter([{"id": name} for name in "cdeFGHIJ"])
    full, sampled, metrics = refilled(scored("aBbk"), spare, 20, sample, lambda batch: batch.rewards["r"], size)
    assert asked == ["cde", "FGH"] and seen == [(3, 0.75), (3, 1.0)]
    assert [row["id"] for row in full.rows] == ["F", "B", "G", "H"] and len(sampled.rows) == 10
    spare = iter([{"id": name} for name in "FGHIJ"])
    full, sampled, metrics = refilled(scored("aB"), spare, 20, sample, lambda batch: batch.rewards["r"], size)
    assert [row["id"] for row in full.rows] == ["F", "B"] and len(sampled.rows) == 5 and metrics["extra_prompts"] == 3


# ---- the sampler -----------------------------------------------------------------------------------------------------

IDS = [f"{kind}{i}" for i in range(30) for kind in "elh"]  # a third easy, a third learnable, a third hard


def chance(id):
    return 0.0 if id.startswith("l") else 0.9


def drawn(sampler, count):
    found = []
    while len(found) < count:
        for batch in sampler:
            found.append(batch)
            if len(found) == count:
                break
    return found


def test_without_skipping_every_row_comes_once_a_pass():
    batches = drawn(GRESOSampler(IDS, 8, 1, skip=lambda id: 0.0), 45)
    rows = [row for batch in batches for row in batch]
    assert all(sorted(rows[i * 90 : (i + 1) * 90]) == list(range(90)) for i in range(4))
    assert batches[:11] == drawn(PromptSampler(90, 8, 1), 11)


def test_the_predicted_are_seldom_drawn_and_the_learnable_always():
    sampler = GRESOSampler(IDS, 8, 1, skip=chance)
    batches = drawn(sampler, 450)
    counts = torch.bincount(torch.tensor(batches).flatten(), minlength=90)
    learnable = torch.tensor([id.startswith("l") for id in IDS])
    assert all(len(set(batch)) == 8 for batch in batches)
    assert counts[learnable].min() >= sampler.passes - 2, (
        "a learnable prompt comes in every pass (but for those within one rollout)"
    )
    share = counts[~learnable].double().mean() / counts[learnable].double().mean()
    assert 0.08 < share < 0.12 and counts[~learnable].min() > 0, "nobody is forgotten for good"
    spare = [row for n in range(200) for row in sampler.spare(n)]
    counts = torch.bincount(torch.tensor(spare), minlength=90)
    assert (counts[learnable] == 200).all() and 0.08 < counts[~learnable].double().mean() / 200 < 0.12


def test_a_rollout_is_filled_where_everything_is_to_be_skipped():
    sampler = GRESOSampler(IDS[:10], 8, 1, skip=lambda id: 1.0)
    assert all(len(set(batch)) == 8 for batch in drawn(sampler, 5)) and (sampler.considered, sampler.skipped) == (
        10,
        10,
    )


def test_processes_share_the_single_process_batches():
    alone, first, second = (
        drawn(GRESOSampler(IDS, 8, 1, rank, processes, skip=chance), 30) for rank, processes in ((0, 1), (0, 2), (1, 2))
    )
    assert [a + b for a, b in zip(first, second, strict=True)] == alone


@pytest.mark.parametrize("stop", [1, 10, 11, 12, 25])
def test_the_sampler_resumes_within_a_pass_and_over_its_end(stop):
    whole = drawn(GRESOSampler(IDS, 8, 1, skip=chance), 40)
    first = GRESOSampler(IDS, 8, 1, skip=chance)
    begin = drawn(first, stop)
    second = GRESOSampler(IDS, 8, 1, skip=chance)
    second.load_state_dict(first.state_dict())
    assert begin + drawn(second, 40 - stop) == whole


# ---- in a run --------------------------------------------------------------------------------------------------------


class Judge(FunctionReward):
    """Answers that end in 0 to 2 are always right, in 3 to 5 always wrong, others by the parity of the length."""

    is_correctness = True

    def __init__(self):
        def judge(completions, answer):
            kinds = [int(given[-1]) // 3 for given in answer]
            return [
                1.0 if kind == 0 else 0.0 if kind == 1 else float(len(text) % 2)
                for kind, text in zip(kinds, completions, strict=True)
            ]  # fmt: skip

        super().__init__(judge, name="judge")


class Seen(L.Callback):
    def __init__(self):
        self.found, self.sampled = [], []

    def on_train_batch_end(self, trainer, pl_module, *given):
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "greso" in name}
        self.found.append((metrics, [row["id"] for row in pl_module.last_rollout.rows]))
        self.sampled.append([row["answer"] for row in pl_module.last_sampled.rows])


def run(reasoner, steps, ckpt_path=None, callbacks=(), **options):
    module = build(reasoner, [Judge()], batch=BatchPlan(4, 4, refill=4.0), sampling=SamplingParams(max_new_tokens=6))
    seen, greso = Seen(), GRESO(**options)
    data = sums((2,), train_size=40, val_size=4)
    fit(module, steps, [*callbacks, DifficultyLedger(), greso, seen], data=data, ckpt_path=ckpt_path)
    return seen, greso, module


def test_a_run_saves_completions_and_a_resumed_one_repeats_it(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    L.seed_everything(0)
    whole, greso, module = run(reasoner, 14)
    never, idle, _ = run(reasoner, 14, p_easy=1.0, p_hard=1.0, step=0)
    assert idle.completions == 4 * sum(map(len, never.sampled)) > greso.completions
    assert all(metrics["train/greso_skipped"] == 0 for metrics, _ in never.found)

    def predictable(seen):
        late = [answer[-1] in "012345" for answers in seen.sampled[7:] for answer in answers]
        return sum(late) / len(late)

    assert predictable(whole) < 0.4 and predictable(never) > 0.5
    assert (greso.p_easy, greso.p_hard) != (0.5, 0.5)
    first, _, _ = run(reasoner, 6, callbacks=[RolloutCheckpoint(folder=str(tmp_path))])
    torch.manual_seed(999)
    rest, again, resumed = run(reasoner, 14, ckpt_path=str(tmp_path / "rollout_000006.ckpt"))
    assert first.found + rest.found == whole.found
    assert again.state_dict() == greso.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), resumed.parameters(), strict=True))


def test_mistakes_are_refused():
    with pytest.raises(ConfigError, match="probabilities above 0"):
        GRESO(p_easy=0.0)
    with pytest.raises(ConfigError, match="hard_at < easy_at"):
        GRESO(easy_at=0.1, hard_at=0.1)
    greso = GRESO()
    with pytest.raises(ConfigError, match="put callbacks.DifficultyLedger before it"):
        greso.on_fit_start(SimpleNamespace(callbacks=[greso, DifficultyLedger()]), None)
    with pytest.raises(ConfigError, match="come from PromptSampler"):
        greso.on_train_start(
            SimpleNamespace(train_dataloader=SimpleNamespace(prompt_sampler=PromptSampler(60, 8, 1))), None
        )
    with pytest.raises(ConfigError, match="without GRESO"):
        GRESOSampler(IDS, 8, 1, skip=chance).load_state_dict(PromptSampler(90, 8, 1).state_dict())


def test_the_configuration_runs(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    unchanged = ("model.batch.prompts_per_rollout", "model.batch.group_size", "data.train_size")
    changes = {"model.sampling.max_new_tokens": 4, "trainer.max_steps": 2}
    cli = run_config(["greso"], reasoner, unchanged=unchanged, **changes)
    assert isinstance(cli.trainer.train_dataloader.prompt_sampler, GRESOSampler)
    # An untrained model is never right: the budget of 32 further prompts is used up in both rollouts.
    assert float(cli.trainer.callback_metrics["train/greso_completions"]) == 2 * (4 + 32) * 8
