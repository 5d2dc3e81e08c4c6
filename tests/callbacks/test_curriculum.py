"""Level of the training prompts: it follows the pass rate both ways, across a resume and on several processes."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch

from callbacks import Curriculum, DifficultyLedger, RolloutCheckpoint
from datamodules import CurriculumSampler, PromptSampler
from datamodules.pass_rates import Measurement
from rewards import FunctionReward
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import build, fit, run_config, sums

LEVELS = [1 + i % 3 for i in range(60)]


def level_of(row):
    return LEVELS[row]


# ---- the sampler -----------------------------------------------------------------------------------------------------


def test_a_draw_is_the_current_level_and_a_share_of_the_easier_ones():
    sampler = CurriculumSampler(LEVELS, 8, seed=1, rehearsal=0.25)
    for level, counts in ((1, {1: 8}), (2, {2: 6, 1: 2}), (3, {3: 6})):
        sampler.level = level
        rows = sampler.draw(7)
        found = {own: [level_of(row) for row in rows].count(own) for own in counts}
        assert len(set(rows)) == 8 and found == counts
        assert rows == sampler.draw(7) != sampler.draw(8)
        assert rows != CurriculumSampler(LEVELS, 8, seed=2, start=level).draw(7)
    easier = {level_of(row) for rollout in range(20) for row in sampler.draw(rollout)}
    assert easier == {1, 2, 3}


def test_further_prompts_come_from_the_level_first_and_never_from_harder_ones():
    sampler = CurriculumSampler(LEVELS, 8, seed=1, start=2)
    rows = list(sampler.spare(4))
    assert [level_of(row) for row in rows] == [2] * 20 + [1] * 20 and len(set(rows)) == 40
    assert rows == list(sampler.spare(4)) != list(sampler.spare(5))


def test_processes_share_the_single_process_batches_at_every_level():
    alone, *shares = (CurriculumSampler(LEVELS, 8, 1, rank, processes) for rank, processes in ((0, 1), (0, 2), (1, 2)))
    batches = [iter(alone), *map(iter, shares)]
    for step in (0, 1, 1, -1, 1):
        for sampler in (alone, *shares):
            sampler.move(step)
        whole, first, second = map(next, batches)
        assert first + second == whole


def test_the_sampler_resumes_within_an_epoch_and_over_its_end():
    def drawn(sampler, count):
        found = []
        while len(found) < count:
            for batch in sampler:
                found.append(batch)
                if len(found) == 9:
                    sampler.move(1)
                if len(found) == count:
                    break
        return found

    whole = drawn(CurriculumSampler(LEVELS, 8, 1), 20)
    first = CurriculumSampler(LEVELS, 8, 1)
    begin = drawn(first, 10)
    second = CurriculumSampler(LEVELS, 8, 1)
    second.load_state_dict(first.state_dict())
    assert second.level == 2 and len(first) == 7
    rest = []
    while len(rest) < 10:
        rest += list(second)[: 10 - len(rest)]
    assert begin + rest == whole


@pytest.mark.parametrize(
    ("levels", "changes", "message"),
    [
        ([None] * 20, {}, "row 0 has None"),
        ([1, 2] * 9 + ["3"], {}, "row 18 has '3'"),
        ([1] * 20, {}, "at least two levels"),
        ([1] * 20 + [2] * 3, {}, r"\{2: 3\}"),
        (LEVELS, {"start": 9}, "at level 9"),
        (LEVELS, {"rehearsal": 1.0}, "rehearsal is 1.0"),
    ],
)
def test_data_and_settings_that_cannot_work_are_refused(levels, changes, message):
    with pytest.raises(ConfigError, match=message):
        CurriculumSampler(levels, 8, 1, **changes)


def test_checkpoints_of_other_samplers_are_refused():
    with pytest.raises(ConfigError, match="without a curriculum"):
        CurriculumSampler(LEVELS, 8, 1).load_state_dict(PromptSampler(60, 8, 1).state_dict())
    with pytest.raises(ConfigError, match="at level 4"):
        CurriculumSampler(LEVELS, 8, 1).load_state_dict(CurriculumSampler(LEVELS, 8, 1).state_dict() | {"level": 4})


# ---- the callback ----------------------------------------------------------------------------------------------------


def follow(rates, window=2, start=1, state=None):
    """The level before every rollout if all groups of the current level have a given rate, and easier groups 1."""
    ledger, curriculum = DifficultyLedger(), Curriculum(raise_at=0.8, lower_at=0.3, window=window)
    sampler = CurriculumSampler(LEVELS, 8, 1, start=start)
    trainer = SimpleNamespace(
        callbacks=[ledger, curriculum],
        train_dataloader=SimpleNamespace(prompt_sampler=sampler),
        is_global_zero=True,
        datamodule=None,
    )
    module = SimpleNamespace(log=lambda name, value, **options: levels.append(int(value)))
    levels: list[int] = []
    if state is not None:
        curriculum.load_state_dict(state["curriculum"])
        sampler.load_state_dict(state["sampler"])
    curriculum.on_fit_start(trainer, module)
    curriculum.on_train_start(trainer, module)
    for number, rate in enumerate(rates):
        rows = sampler.draw(number)
        ledger.last = [
            Measurement(str(r), number, rate if level_of(r) == sampler.level else 1.0, level=level_of(r)) for r in rows
        ]  # fmt: skip
        curriculum.on_train_batch_end(trainer, module, None, None, number)
    return levels, {"curriculum": curriculum.state_dict(), "sampler": sampler.state_dict()}


def test_the_level_follows_the_pass_rate_up_and_down():
    assert follow([0.9] * 6)[0] == [1, 1, 2, 2, 3, 3], "a level is measured for a whole window before it is left"
    assert follow([0.9] * 9)[0][-1] == 3, "there is no level above the highest"
    assert follow([0.1] * 5, start=3)[0] == [3, 3, 2, 2, 1], (
        "the easier groups' success does not hide the current level's failure"
    )
    assert follow([0.1] * 9)[0][-1] == 1, "nor one below the lowest"
    assert follow([0.5] * 9, start=2)[0] == [2] * 9
    assert follow([0.9, 0.9, 0.1, 0.1, 0.9, 0.9, 0.9])[0] == [1, 1, 2, 2, 1, 1, 2]
    assert follow([0.7, 0.75, 0.9, 0.5])[0] == [1, 1, 1, 2], "the window slides where the level stays"


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_the_callback_resumes_within_a_window(stop):
    rates = [0.9, 0.95, 0.2, 0.1, 0.85, 0.8, 0.9, 0.9]
    whole, end = follow(rates)
    first, state = follow(rates[:stop])
    rest, last = follow(rates[stop:], state=state)
    assert first + rest == whole and last == end


def test_mistakes_are_refused():
    with pytest.raises(ConfigError, match="lower_at < raise_at"):
        Curriculum(raise_at=0.3, lower_at=0.3)
    curriculum = Curriculum()
    with pytest.raises(ConfigError, match="put callbacks.DifficultyLedger before it"):
        curriculum.on_fit_start(SimpleNamespace(callbacks=[curriculum, DifficultyLedger()]), None)
    plain = SimpleNamespace(prompt_sampler=PromptSampler(60, 8, 1))
    with pytest.raises(ConfigError, match="come from PromptSampler"):
        curriculum.on_train_start(SimpleNamespace(train_dataloader=plain), None)


# ---- in a run --------------------------------------------------------------------------------------------------------


class Judge(FunctionReward):
    """Right at levels 1 and 2, wrong above: the level swings between 2 and 3."""

    is_correctness = True

    def __init__(self):
        super().__init__(lambda completions, level: [float(own < 3) for own in level], name="judge")


def run(reasoner, steps, ckpt_path=None, callbacks=(), levels=(1, 2, 3)):
    module = build(reasoner, [Judge()], batch=BatchPlan(4, 2), sampling=SamplingParams(max_new_tokens=4))
    seen = Seen()
    data = sums(levels, train_size=24, val_size=4)
    fit(module, steps, [*callbacks, DifficultyLedger(), Curriculum(window=2), seen], data=data, ckpt_path=ckpt_path)
    return seen.found


class Seen(L.Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, *given):
        level = int(trainer.callback_metrics["train/curriculum_level"])
        self.found.append((level, [row["id"] for row in pl_module.last_rollout.rows]))


def test_a_run_moves_and_a_resumed_one_repeats_it(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    L.seed_everything(0)
    whole = run(reasoner, 11)
    assert [level for level, _ in whole] == [1, 1, 2, 2, 3, 3, 2, 2, 3, 3, 2]
    assert all(len(ids[0]) == len("1+1=?") for level, ids in whole if level == 1)
    first = run(reasoner, 5, callbacks=[RolloutCheckpoint(folder=str(tmp_path))])
    torch.manual_seed(999)
    rest = run(reasoner, 11, ckpt_path=str(tmp_path / "rollout_000005.ckpt"))
    assert first + rest == whole


def test_data_without_enough_levels_are_refused_by_a_run(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="at least two levels"):
        run(reasoner, 1, levels=(2,))


def test_the_overlay_runs_on_grpo(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    changes = {
        "trainer.max_steps": 2,
        "data.train_size": 40,
        "model.batch.prompts_per_rollout": 4,
        "model.batch.group_size": 2,
        "model.sampling.max_new_tokens": 4,
    }
    cli = run_config(["grpo", "curriculum"], reasoner, unchanged=["trainer.enable_checkpointing"], **changes)
    sampler = cli.trainer.train_dataloader.prompt_sampler
    assert isinstance(sampler, CurriculumSampler) and list(sampler.pools) == [1, 2, 3, 4, 5]
    assert float(cli.trainer.callback_metrics["train/curriculum_level"]) == 1
    assert (tmp_path / "runs/local/pass_rates.jsonl").is_file() and (
        tmp_path / "runs/local/checkpoints/rollout_000002.ckpt"
    ).is_file()
