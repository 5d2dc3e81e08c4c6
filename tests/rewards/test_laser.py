"""LASER and its difficulty-aware forms: the bonus and the targets by hand, and exact resuming with a monitor."""

import mlflow
import pytest
import torch
from lightning.pytorch.loggers import MLFlowLogger

from callbacks import LaserMonitor, RolloutCheckpoint
from callbacks.laser_monitor import difficulty, target_length
from rewards import FunctionReward, GradedAnswer, Laser, LaserD, LaserDE, repetition, total_reward
from rewards.repetition import loops
from rollouts import SamplingParams
from support.errors import ConfigError
from tests.helpers import build, fit, run_config, sums, weights
from tests.rewards.helpers import batch_of


def total(base, reward, batch):
    batch.rewards["bonus"] = reward(batch)
    reward.name = "bonus"
    return total_reward([base, reward], batch.rewards).tolist()


def test_the_grades_of_an_answer():
    def right(completions):
        return [float("12" in text) for text in completions]

    grade = GradedAnswer(FunctionReward(right))
    batch = batch_of([1, 1, 1, 1], [0, 0, 0, 0])
    batch._completions = ["5+7=12</think>12", "5+7=13</think>13", "5+7=12", "12</think>12</think>12"]
    scores = grade(batch)
    assert scores.tolist() == [1, -0.5, -1, -1] and grade.unscaled(scores, batch).tolist() == [1, 0, 0, 0]
    with pytest.raises(ConfigError, match="malformed <= wrong < 1"):
        GradedAnswer(wrong=-2.0)


def test_laser_adds_half_a_point_to_right_answers_that_fit():
    batch = batch_of([5, 6, 7, 5, 5], [1, 1, 1, -0.5, -1], name="graded_answer")
    reward = Laser(target=6)
    shown = reward.metrics(batch)
    assert total(GradedAnswer(), reward, batch) == [1.5, 1.5, 1, -0.5, -1]
    assert shown["laser_target"] == 6 and shown["laser_bonus"] == pytest.approx(0.4) and shown["length/correct"] == 6
    with pytest.raises(ConfigError, match="1 or above"):
        Laser(target=0)


def test_every_difficulty_has_its_target_and_a_batch_without_one_its_longest():
    # groups of three: 2 of 3 right is easy, 1 of 3 medium, none hard
    scores = [1, 1, -0.5, 1, -0.5, -0.5, -1, -0.5, -0.5]
    batch = batch_of([3, 5, 2, 6, 6, 6, 9, 9, 9], scores, prompts=3, name="graded_answer")
    reward = LaserD(alpha=0.25)
    assert reward.buckets(batch) == ["easy", "medium", "hard"]
    assert reward.targets_of(batch).tolist() == [9] * 9, "nothing measured yet"
    reward.targets |= {"easy": 4, "medium": 6}
    assert reward(batch).tolist() == [0.25, 0, 0, 0.25, 0, 0, 0, 0, 0]
    shown = reward.metrics(batch)
    assert (
        shown["laser_target/easy"] == 4
        and "laser_target/hard" not in shown
        and shown["laser_share/easy"] == pytest.approx(1 / 3)
    )
    again = LaserD()
    again.load_state_dict(reward.state_dict())
    assert again.targets == {"easy": 4, "medium": 6, "hard": None}
    again.load_state_dict({})
    assert again.targets == {"easy": None, "medium": None, "hard": None}


def test_a_wrong_answer_in_form_may_explore_unless_it_repeats_itself():
    repeating = [1, 2, 3, 4, 5, 1, 2, 3, 4, 6, 1, 2, 3, 4, 7, 8, 9, 10]
    batch = batch_of(
        [18, 18, 18, 4], [-0.5, -0.5, -1, -0.5], name="graded_answer", token_ids=[list(range(18)), repeating]
    )
    for reward, expected in ((LaserDE(), [0, -0.5, -1, -0.5]), (LaserDE(ngram=None), [0, 0, -1, -0.5])):
        reward.targets["hard"] = 10
        assert total(GradedAnswer(), reward, batch) == expected
    reward = LaserDE()
    assert "laser_repeats" not in reward.metrics(batch), "without a target nothing is long enough to explore"
    reward.targets["hard"] = 10
    assert reward.metrics(batch)["laser_repeats"] == 0.5


def test_only_what_could_explore_is_searched_for_repetitions_and_once(monkeypatch):
    """A search takes a tenth of a second for a completion of 16,384 tokens."""
    searched = []
    monkeypatch.setattr(repetition, "loops", lambda tokens, *sizes: bool(searched.append(len(tokens))))
    right_wrong_malformed = [1, -0.5, -1, -0.5]
    batch = batch_of([18, 17, 16, 4], right_wrong_malformed, name="graded_answer")
    reward = LaserDE()
    reward.targets = dict.fromkeys(reward.targets, 10)
    batch.rewards[reward.name] = reward(batch)
    reward.metrics(batch), reward.observe(batch)
    assert searched == [17]
    again = batch_of([12], [-0.5], name="graded_answer")
    reward(again)
    assert searched == [17, 12], "another batch is searched anew"


def test_what_a_repetition_is():
    assert not loops(list(range(40)))
    assert loops([1, 2, 3, 4, 5, 1, 2, 3, 4, 6, 1, 2, 3, 4, 7, 8, 9, 10])  # a 4-gram three times, 5 apart of 18
    assert not loops([1, 2, 3, 4, 5, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14])  # twice only
    assert not loops([1, 2, 3, 4, *range(10, 30), 1, 2, 3, 4, *range(30, 50), 1, 2, 3, 4])  # three times, too far apart
    assert not loops([7] * 4 + list(range(10, 24)))  # one token only
    assert loops([*range(8), *range(100, 130), *range(8)])  # eight tokens twice
    assert not loops([1, 2, 1, 2, 1, 2, 1, 2])  # too short to tell


def test_the_boundaries_of_the_monitor_belong_to_the_harder_side():
    assert [difficulty(right, 6) for right in range(7)] == ["hard"] * 3 + ["medium"] * 2 + ["easy"] * 2


def test_targets_by_hand():
    lengths, candidates = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100], range(25, 126, 25)
    # coverage 1/5 needs two of the ten, 1/2 five, 1 all; 1/6 two, 1/3 four
    assert [target_length(lengths, expected, candidates) for expected in (5, 2, 1, 6, 3)] == [25, 50, 100, 25, 50]
    shorter = [length // 2 for length in lengths]
    assert [target_length(shorter, expected, candidates) for expected in (5, 2, 1)] == [25, 25, 50]
    assert target_length([200], 1, candidates) is None and target_length([], 5, candidates) is None
    assert LaserMonitor(samples=8).expected == {"easy": 5, "medium": 2, "hard": 1}
    assert LaserMonitor(samples=8, counts="ceil").expected == {"easy": 6, "medium": 3, "hard": 1}
    assert (
        LaserMonitor(samples=6).expected
        == LaserMonitor(samples=6, counts="ceil").expected
        == {"easy": 4, "medium": 2, "hard": 1}
    )


def starts_with_a_digit(completions):
    return [1.0 if text[:1].isdigit() else -0.5 for text in completions]


def run(reasoner, folder, steps, callbacks=(), monitored=True, **options):
    rewards = [FunctionReward(starts_with_a_digit), LaserD(correctness="starts_with_a_digit")]
    module = build(reasoner, rewards, sampling=SamplingParams(max_new_tokens=24))
    monitor = LaserMonitor(every_n_rollouts=2, size=8, samples=6, shortest=4, longest=24, interval=4)
    callbacks = [*callbacks, *([monitor] if monitored else [])]
    return (
        module,
        monitor,
        fit(module, steps, callbacks, data=sums(train_size=16, val_size=4), folder=folder, **options),
    )


def state(module):
    return weights(module), module.rewards[1].targets


def test_a_resumed_run_has_the_targets_and_weights_of_the_uninterrupted_one(reasoner, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger(tracking_uri=uri, artifact_location=str(tmp_path / "artifacts"))
    whole, monitor, trainer = run(reasoner, tmp_path / "whole", 4, logger=logger)
    assert monitor.tokens == 0 and len(monitor.groups) == 8 and any(whole.rewards[1].targets.values())
    for bucket, expected in monitor.expected.items():
        lengths = sorted(n for right, group in monitor.groups if difficulty(right, 6) == bucket for n in group)
        target = whole.rewards[1].targets[bucket]
        if target is None:
            assert not lengths
        else:
            covered = [
                candidate
                for candidate in range(4, 25, 4)
                if expected * sum(n <= candidate for n in lengths) >= len(lengths)
            ]
            assert target == covered[0]
    assert "figures/laser_coverage.png" in {
        file.path for file in mlflow.MlflowClient(uri).list_artifacts(logger.run_id, "figures")
    }
    _, _, half = run(reasoner, tmp_path / "half", 3, callbacks=[RolloutCheckpoint(folder=str(tmp_path / "saved"))])
    shares = [float(half.callback_metrics[f"train/laser_monitor/{bucket}"]) for bucket in monitor.expected]
    assert sum(shares) == pytest.approx(1), "the third rollout was measured"
    resumed, _, _ = run(reasoner, tmp_path / "rest", 4, ckpt_path=str(tmp_path / "saved/rollout_000003.ckpt"))
    assert torch.equal(state(resumed)[0], state(whole)[0]) and state(resumed)[1] == state(whole)[1]


def test_watching_alone_changes_nothing(reasoner, tmp_path):
    """With no target that acts the monitored run is the plain one: same prompts, same draws."""
    watched, _, _ = run(reasoner, tmp_path / "a", 1)
    plain, _, _ = run(reasoner, tmp_path / "b", 1, monitored=False)
    assert [row["id"] for row in watched.last_rollout.rows] == [row["id"] for row in plain.last_rollout.rows]
    assert torch.equal(watched.last_rollout.completion_ids, plain.last_rollout.completion_ids)


def test_a_monitor_without_a_reward_to_serve_is_refused(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"trainer.callbacks": "[{class_path: callbacks.LaserMonitor}]"}
    with pytest.raises(ConfigError, match="Add one of them"):
        run_config(["laser"], reasoner, **given)
    with pytest.raises(ConfigError, match="samples >= 3"):
        LaserMonitor(samples=2)


def test_the_shipped_configurations_run(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = run_config(["laser"], reasoner, **{"trainer.callbacks": "[]"})
    assert plain.model.rewards[1].target == 34 and float(plain.trainer.callback_metrics["train/laser_target"]) == 34
    dynamic = run_config(["laser", "laser_d"], reasoner)
    assert (
        isinstance(dynamic.model.rewards[1], LaserD)
        and float(dynamic.trainer.callback_metrics["train/laser_monitor_tokens"]) > 0
    )
