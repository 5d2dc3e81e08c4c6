"""The experiments of the papers: every arm is understood, and the table of results is that of hand-made curves."""

import json

import pytest

from benchmarks import papers
from benchmarks.papers import EXPERIMENTS, command
from main import main as command_line

QUICK = ("laser", "t_spmo")  # both have an arm with other configurations; make test-long tries all


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in EXPERIMENTS]
)
def test_the_command_line_of_every_arm_is_understood(name, capsys):
    """`plan` puts the whole run together without loading weights."""
    paper, experiment = EXPERIMENTS[name]
    assert next(iter(experiment.arms.values())) == {} and "grpo" in experiment.arms, "the paper's own arm comes first"
    for arm in experiment.arms:
        assert command_line(["plan", *command(paper, experiment, arm)]).model.batch.group_size > 1


def test_rows_show_starts_ends_and_plain_grpo_at_equal_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(papers, "RESULTS", tmp_path)
    # Two rows per rollout. Tokens: 2 * (5 + 5 + 5) for the paper's arm, 2 * (10 + 10 + 10) for plain GRPO.
    for arm, length, ends in (("ktae", 5.0, (0.6, 0.8)), ("grpo", 10.0, (0.4, 0.4))):
        for seed, end in enumerate(ends):
            validations = [[0, 0.2], [1, 0.3], [2, end]]
            curves = {"val/pass1": validations, "train/length": [[step, length] for step in range(3)]}
            result = {"minutes": 1.0, "rows": 2, "curves": curves}
            (tmp_path / f"ktae_{arm}_{seed}.json").write_text(json.dumps(result))
    before = "| ktae | ktae | 3 | stale | 1 k |\n| hapo | hapo | 3 | measured elsewhere | 56 k |\n"
    rows = papers.table(before).splitlines()[2:]
    # Student's t(0.975) with one degree of freedom is 12.706: 0.1 apart from the mean gives 12.706 * 0.1414 / sqrt(2).
    assert rows == [
        "| hapo | hapo | 3 | measured elsewhere | 56 k |",
        "| ktae | ktae | 2 | val pass@1: 0.200 ± 0.000 → 0.700 ± 1.271 | 0 k |",
        "| ktae | ktae, clamped | 0 |  |  |",
        "| ktae | grpo | 2 | val pass@1: 0.200 ± 0.000 → 0.400 ± 0.000 | 0 k |",
        "| ktae | grpo, equal tokens | 2 | val pass@1: 0.200 ± 0.000 → 0.200 ± 0.000 |  |",
    ]
