"""The effect of edits on accuracy, and whether a number predicts wrong answers, beside hand counts and torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_calibration_error

from objectives.answer_uncertainty import AnswerRecord, areas, calibration_error, resampled, uncertainty_figures
from objectives.stress import Answer, stress_figures


def choice(question, condition, answer, chosen, lengths=(3, 3, 3, 3)):
    """An answer that chooses an option by its label, and the right one by its text."""
    label, text = ([float(place == best) for place in range(4)] for best in (chosen, answer))
    return Answer(question, condition, answer, {"label": label, "text": text}, list(lengths))


def statement(question, place, is_true, margin):
    return Answer(question, "true_false", 0 if is_true else 1, {"label": [margin, 0.0]}, [4, 5], statement=True)


def test_changes_and_flips_are_those_of_the_same_questions():
    base = [choice("a", "base", 0, 0), choice("b", "base", 1, 0), choice("c", "base", 2, 2), choice("d", "base", 3, 3)]
    edited = [choice("d", "edit", 3, 3), choice("c", "edit", 2, 1), choice("b", "edit", 1, 1)]  # a has no such form
    figures = stress_figures([*edited, *base])
    label, text = figures["label"]["edit"], figures["text"]["edit"]
    assert figures["label"]["base"]["accuracy"].mean == 0.75 and label["questions"] == 3
    assert label["accuracy"].mean == pytest.approx(2 / 3) and label["change"].mean == 0
    assert label["right_to_wrong"].mean == label["wrong_to_right"].mean == pytest.approx(1 / 3)
    assert (text["accuracy"].mean, text["change"].mean, text["right_to_wrong"].mean) == (1, 0, 0)


def test_the_interval_of_a_change_is_paired():
    """Two conditions with the same flips of different questions: the change is certain where all flips agree."""
    base = [choice(str(n), "base", 0, n % 2) for n in range(100)]
    edit = [choice(str(n), "edit", 0, 0 if n % 2 else 1) for n in range(100)]
    same = [choice(str(n), "same", 0, n % 2) for n in range(100)]
    figures = stress_figures(base + edit + same)["label"]
    assert figures["same"]["change"] == (0, 0, 0), "no question changed, so no resample does"
    change = figures["edit"]["change"]
    assert change.mean == 0 and change.low < -0.1 and change.high > 0.1
    assert stress_figures((base + edit + same)[::-1])["label"] == figures, "the order of the answers is of no account"


def test_the_length_preference_counts_questions_with_one_longest_option():
    answers = [
        choice("a", "base", 0, 1, (3, 9, 3, 3)),  # the longest is chosen and wrong
        choice("b", "base", 1, 1, (3, 9, 3, 3)),  # chosen and right
        choice("c", "base", 0, 0, (3, 9, 3, 3)),
        choice("d", "base", 1, 1, (3, 9, 9, 3)),  # there are two
    ]
    base = stress_figures(answers)["label"]["base"]
    assert base["longest_chosen"].mean == pytest.approx(2 / 3)
    assert base["longest_right"].mean == pytest.approx(1 / 3) and base["longest_chance"].mean == 0.25
    assert "longest_chosen" not in stress_figures([choice("d", "base", 0, 0)])["label"]["base"]


def test_statements_are_compared_within_a_question_and_judged_alone():
    answers = [choice("a", "base", 1, 1), choice("b", "base", 1, 0)]
    answers += [statement("a", place, place == 1, margin) for place, margin in enumerate((0.1, 0.9, -1.0, -1.0))]
    answers += [statement("b", place, place == 1, margin) for place, margin in enumerate((-2.0, -1.0, -2.0, -3.0))]
    figures = stress_figures(answers)["label"]["true_false"]
    assert figures["accuracy"].mean == 1, "the true statement has the largest margin in both"
    assert figures["change"].mean == 0.5 and figures["questions"] == 2
    assert figures["statements"].mean == pytest.approx(((1 + 2 / 3) / 2 + (0 + 1) / 2) / 2)
    assert figures["all_statements"].mean == 0


def test_a_model_that_calls_every_statement_false_is_at_chance():
    answers = [choice("a", "base", 0, 0), *(statement("a", place, place == 0, -1.0) for place in range(4))]
    assert stress_figures(answers)["label"]["true_false"]["statements"].mean == 0.5


# ---- answer uncertainty ----------------------------------------------------------------------------------------------


def repeated(values, counts):
    return torch.tensor(np.repeat(values, counts.astype(int)))


@pytest.mark.parametrize("distinct", [3, 1000])  # with ties and without
@pytest.mark.parametrize("answers", [6, 80])
def test_areas_and_calibration_are_torchmetrics(distinct, answers):
    """Weights are counts: those of repeated answers."""
    rng = np.random.default_rng(answers)
    scores = rng.integers(0, distinct, answers) / distinct
    wrong, confidence = (rng.random(answers) < 0.2 + 0.6 * scores).astype(float), rng.random(answers)
    weights = resampled(answers, 12, seed=0)
    roc, precision = areas(scores, wrong, weights)
    error = calibration_error(confidence, 1 - wrong, weights)
    compared = 0
    for row, counts in enumerate(weights):
        classes = repeated(wrong, counts).long()
        expected = binary_calibration_error(repeated(confidence, counts), 1 - classes, n_bins=10)
        assert error[row] == pytest.approx(float(expected), abs=1e-6)
        if classes.min() == classes.max():
            assert np.isnan(roc[row]) and np.isnan(precision[row])
            continue
        compared += 1
        assert roc[row] == pytest.approx(float(binary_auroc(repeated(scores, counts), classes)), abs=1e-6)
        assert precision[row] == pytest.approx(
            float(binary_average_precision(repeated(scores, counts), classes)), abs=1e-6
        )
    assert compared >= 6


def records(count, predictor, rng, topic="law"):
    return [
        AnswerRecord(f"{topic}{n}", bool(right), 0.5, True, {"entropy": predictor(right, rng)}, {"topic": topic})
        for n, right in enumerate(rng.random(count) < 0.5)
    ]


def test_a_predictor_is_told_from_noise_and_a_wrong_sign_stays_visible():
    rng = np.random.default_rng(0)
    good = records(400, lambda right, rng: rng.normal(0 if right else 1.5), rng, "good")
    noise = records(400, lambda right, rng: rng.normal(), rng, "noise")
    wrong_sign = records(400, lambda right, rng: rng.normal(1.5 if right else 0), rng, "sign")
    figures = uncertainty_figures([*good, *noise, *wrong_sign], resamples=200)
    areas_by_topic = {topic: figures[f"topic/{topic}"]["entropy"]["roc_auc"] for topic in ("good", "noise", "sign")}
    assert areas_by_topic["good"].low > 0.75 and areas_by_topic["sign"].high < 0.25
    assert areas_by_topic["noise"].low < 0.5 < areas_by_topic["noise"].high
    assert figures["all"]["questions"] == 1200 and figures["all"]["accuracy"].mean == pytest.approx(0.5, abs=0.05)
    again = uncertainty_figures([*wrong_sign, *good[::-1], *noise], resamples=200)
    assert again == figures, "the order of the answers is of no account"


def test_undefined_areas_small_groups_and_missing_ratings_are_left_out():
    right = [AnswerRecord(str(n), True, 0.9, n > 2, {"entropy": float(n)}, {"steps": "1"}) for n in range(12)]
    few = [AnswerRecord(f"f{n}", n == 0, 0.4, True, {"entropy": 1.0}, {"steps": "2"}) for n in range(3)]
    figures = uncertainty_figures([*right, *few], resamples=50)
    assert figures["steps/1"]["entropy"]["roc_auc"] is None and "steps/2" not in figures
    assert figures["steps/1"]["invalid"] == 0.25 and figures["steps/1"]["ece"].mean == pytest.approx(0.1)
    for record in (*right, *few):
        record.predictors["judge"] = float("nan")
    assert "judge" not in uncertainty_figures([*right, *few], resamples=50)["all"]
    few[0].predictors["judge"], few[1].predictors["judge"] = 0.2, 0.7
    assert uncertainty_figures([*right, *few], resamples=50)["all"]["judge"]["roc_auc"].mean == 1
