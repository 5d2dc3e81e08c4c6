"""Varied settings, paired differences with a correction for many methods, and the files of results."""

import csv
import io
import json
import math
from itertools import combinations

import pytest

from benchmarks.compare.__main__ import check
from benchmarks.compare.differences import gaps
from benchmarks.compare.export import as_csv, as_json
from benchmarks.compare.intervals import holm, p_value
from benchmarks.compare.methods import METHODS, arguments, chosen, varied
from benchmarks.compare.pictures import learning_curves
from benchmarks.compare.report import Report
from benchmarks.compare.trials import Result
from support.errors import ConfigError


def run(seed, right, seconds=(0.0, 5.0, 9.0)):
    curve = [(0.0, 0.5), (400.0, 0.6), (900.0, right)]
    return Result(
        f"run{seed}", seed, 12.0, {"val/pass1": right, "val/reward": right, "train/tokens": 900.0}, {"val/pass1": 0.5},
        {"val/pass1": curve, "val/reward": curve}, 3, {"val/pass1": list(seconds), "val/reward": list(seconds)},
    )  # fmt: skip


RESULTS = {
    "grpo": [run(0, 0.70), run(1, 0.72), run(2, 0.71)],
    "laser": [run(0, 0.80), run(1, 0.82), run(2, 0.815)],
    "hapo": [run(0, 0.70), run(1, 0.60), run(2, 0.80)],
}


def test_p_values_are_those_of_students_table():
    """Printed t(0.975): 4.303 for 2 and 2.776 for 4 degrees of freedom; a statistic of this size has p = 0.05."""
    for count, quantile in ((3, 4.303), (5, 2.776)):
        spread = math.sqrt((count - 1) / 2)
        shift = quantile / math.sqrt(count)
        ours = dict(enumerate([shift + spread, shift - spread, *[shift] * (count - 2)]))
        assert p_value(ours, dict.fromkeys(ours, 0.0)) == pytest.approx(0.05, rel=1e-3)
    assert p_value({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}) == 1 and p_value({0: 2.0, 1: 2.0}, {0: 1.0, 1: 1.0}) == 0
    assert math.isnan(p_value({0: 1.0, 1: 1.0}, {1: 0.5}))


def test_holm_is_the_closed_test_of_bonferroni():
    """A hypothesis is rejected if every set that has it is rejected by Bonferroni's test of that set."""
    p_values = {"a": 0.04, "b": 0.011, "c": 0.6, "d": 0.02, "e": math.nan}
    known = [name for name in p_values if name != "e"]
    sets = [set(names) for size in range(1, 5) for names in combinations(known, size)]
    adjusted = holm(p_values)
    for name in known:
        by_sets = max(min(1.0, len(names) * min(p_values[n] for n in names)) for names in sets if name in names)
        assert adjusted[name] == pytest.approx(by_sets)
    assert math.isnan(adjusted["e"]) and holm({}) == {}


def test_gaps_pair_seeds_and_correct_for_the_number_of_methods():
    found = gaps(RESULTS, lambda result: result.values["val/pass1"], "grpo")
    assert set(found) == {"laser", "hapo"}
    assert found["laser"].interval.mean == pytest.approx((0.1 + 0.1 + 0.105) / 3)
    assert found["laser"].adjusted == pytest.approx(2 * found["laser"].p) and found["laser"].clear
    assert found["hapo"].interval.mean == pytest.approx((0 - 0.12 + 0.09) / 3) and not found["hapo"].clear
    assert gaps(RESULTS, lambda result: math.nan, "grpo") == {}


def test_the_report_has_a_column_of_differences_and_curves_against_seconds():
    page = Report(RESULTS, {name: METHODS[name] for name in RESULTS}, [], "http://x", "7", {}, [], "grpo")
    rows = page.table().split("<tr")
    (laser,) = [row for row in rows if ">LASER <" in row]
    (hapo,) = [row for row in rows if ">HAPO <" in row]
    (grpo,) = [row for row in rows if ">GRPO <" in row]
    assert 'class="up">+0.102' in laser and 'class="">-0.010' in hapo and ">baseline<" in grpo
    assert all(row.count("<td") == rows[-1].count("<td") for row in rows[2:]), "every row has every column"
    assert rows[1].count("<th>") == rows[-1].count("<td")
    text = page.html()
    for title in ("Accuracy against seconds", "Reward against tokens", "Reward against seconds"):
        assert f"<summary>{title}</summary>" in text
    assert "-0.102" in Report(RESULTS, page.methods, [], "http://x", "7", {}, [], "laser").table()


def test_a_curve_against_seconds_has_the_times_of_its_validations(monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda self, x, y, **style: drawn.append((list(x), list(y))))
    learning_curves({"laser": [run(0, 0.8), run(1, 0.9, (0.0, 7.0, 11.0))]}, {"laser": "LASER"}, against="seconds")
    assert drawn[:2] == [([0.0, 5.0, 9.0], [0.5, 0.6, 0.8]), ([0.0, 7.0, 11.0], [0.5, 0.6, 0.9])]
    assert drawn[2] == ([0.0, 6.0, 10.0], [0.5, 0.6, pytest.approx(0.85)])


def test_files_of_results_hold_every_run_and_the_same_numbers():
    rows = list(csv.DictReader(io.StringIO(as_csv(RESULTS, [run(0, 0.1)]))))
    assert [(row["method"], row["seed"]) for row in rows] == [
        *((name, str(seed)) for name in RESULTS for seed in range(3)), ("hc_rlhf", "0")
    ]  # fmt: skip
    assert [float(row["pass@1"]) for row in rows[:3]] == [0.70, 0.72, 0.71] and rows[0]["pass@4"] == ""
    assert rows[0]["time_s"] == "12.0" and rows[0]["tokens_thousands"] == "0.9"
    told = json.loads(as_json(RESULTS, {name: name for name in RESULTS}, "grpo", {"seeds": "3"}))
    laser = told["methods"]["laser"]
    assert laser["values"]["pass@1"]["mean"] == pytest.approx((0.80 + 0.82 + 0.815) / 3)
    assert laser["difference_to_baseline"]["pass@1"]["p_holm"] == pytest.approx(
        2 * laser["difference_to_baseline"]["pass@1"]["p"]
    )
    assert told["methods"]["grpo"]["difference_to_baseline"] == {} and told["facts"] == {"seeds": "3"}
    assert laser["values"]["pass@4"] == {"mean": None, "half": None, "seeds": 0}
    assert laser["curves"][0]["seconds"] == [0.0, 5.0, 9.0]


def test_a_setting_is_varied_in_every_combination():
    arms = varied(chosen(["grpo", "laser"]), ["model.loss.clip_high=[0.2,0.28]", "model.optimizer.lr=[1e-4, 2e-4]"])
    assert len(arms) == 8 and list(arms)[0] == "grpo.clip_high_0.2_lr_1e-4"
    arm = arms["laser.clip_high_0.28_lr_1e-4"]
    assert arm.title == "LASER, clip_high 0.28, lr 1e-4"
    assert arm.comparison == METHODS["laser"].comparison | {"model.loss.clip_high": 0.28, "model.optimizer.lr": "1e-4"}
    assert "--model.loss.clip_high=0.28" in arguments(arm, 0, 100)
    both = varied(
        chosen(["grpo"]), ["model.sampling.temperature=[0.5,1]", "model.evaluation.sampling.temperature=[0,1]"]
    )
    assert "grpo.model.sampling.temperature_0.5_model.evaluation.sampling.temperature_0" in both
    for wrong in ("clip_high", "a=0.2", "a=[0.2]", "a=[1,1]", "=[1,2]", "a=[1,"):
        with pytest.raises(ConfigError, match="--vary"):
            varied(chosen(["grpo"]), [wrong])
    with pytest.raises(ConfigError, match="leave it out of --methods"):
        varied(chosen(["hc_rlhf"]), ["a=[1,2]"])
    with pytest.raises(ConfigError, match="name each key once"):
        varied(chosen(["grpo"]), ["a=[1,2]", "a=[3,4]"])


def test_a_misspelt_setting_is_refused_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    for arm in varied(chosen(["grpo"]), ["model.loss.clip_high=[0.2,0.28]"]).values():
        check(arm)
    (arm, _) = varied(chosen(["grpo"]), ["model.loss.clip_hihg=[0.2,0.28]"]).values()
    with pytest.raises(ConfigError, match="clip_hihg"):
        check(arm)
