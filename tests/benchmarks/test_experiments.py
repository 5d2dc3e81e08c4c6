"""The experiments of the papers: every arm is understood, and the table of results is that of hand-made curves."""

import json
import shutil
from dataclasses import replace

import pytest

from benchmarks import paper_results, papers
from benchmarks.paper_results import EXPERIMENTS, command
from main import main as command_line
from support.papers import Claim

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


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Results of KTAE, made by hand: two rows per rollout, so 30 tokens of the paper's arm and 60 of plain GRPO."""
    monkeypatch.setattr(paper_results, "RESULTS", tmp_path / "runs")
    monkeypatch.setattr(paper_results, "STORE", tmp_path / "kept")
    (tmp_path / "runs").mkdir()
    for arm, length, ends in (("ktae", 5.0, (0.6, 0.8)), ("grpo", 10.0, (0.4, 0.4))):
        for seed, end in enumerate(ends):
            validations = [[0, 0.2], [1, 0.3], [2, end]]
            curves = {"val/pass1": validations, "train/length": [[step, length] for step in range(3)]}
            result = {"minutes": 1.0, "rows": 2, "curves": curves, "digest": paper_results.digest("ktae", arm)}
            paper_results.path_of("ktae", arm, seed).write_text(json.dumps(result))
    return tmp_path


#: Student's t(0.975) with one degree of freedom is 12.706: 0.1 apart from the mean gives 12.706 * 0.1414 / sqrt(2)
ROWS = [
    "| ktae | ktae | 2 | val pass@1: 0.200 ± 0.000 → 0.700 ± 1.271 | 0 k |",
    "| ktae | ktae, clamped | 0 |  |  |",
    "| ktae | ktae on dapo | 0 |  |  |",
    "| ktae | dapo | 0 |  |  |",
    "| ktae | grpo | 2 | val pass@1: 0.200 ± 0.000 → 0.400 ± 0.000 | 0 k |",
    "| ktae | grpo, equal tokens | 2 | val pass@1: 0.200 ± 0.000 → 0.200 ± 0.000 |  |",
]


def test_rows_show_starts_ends_and_both_arms_at_equal_tokens(measured):
    before = "| ktae | ktae | 3 | stale | 1 k |\n| hapo | hapo | 3 | measured elsewhere | 56 k |\n"
    rows = papers.table(before).splitlines()[2:]
    assert rows == ["| hapo | hapo | 3 | measured elsewhere | 56 k |", *ROWS]
    for path in (measured / "runs").glob("ktae_ktae_*.json"):  # now the paper's arm generates more than plain GRPO
        result = json.loads(path.read_text())
        result["curves"]["train/length"] = [[step, 30.0] for step in range(3)]
        path.write_text(json.dumps(result))
    rows = papers.table("").splitlines()[2:]
    assert rows[-1] == "| ktae | ktae, equal tokens | 2 | val pass@1: 0.200 ± 0.000 → 0.200 ± 0.000 |  |"


def test_kept_results_give_the_same_rows_without_the_runs(measured):
    paper_results.keep("ktae")
    for path in (measured / "runs").iterdir():
        path.unlink()
    assert papers.table("").splitlines()[2:] == ROWS


def test_results_of_other_settings_do_not_count(measured, monkeypatch):
    paper_results.keep("ktae")
    paper, experiment = EXPERIMENTS["ktae"]
    for changed in (
        replace(experiment, rollouts=41),
        replace(experiment, arms=experiment.arms | {"ktae": {"model.policy.model": "assets/tiny_json"}}),
    ):
        monkeypatch.setitem(EXPERIMENTS, "ktae", (paper, changed))
        assert paper_results.results("ktae", "ktae") == []


def test_a_digest_covers_the_weights_that_the_settings_name(tmp_path, monkeypatch):
    """A start that was trained anew makes results of the old one obsolete."""
    shutil.copytree(paper_results.ROOT / "configs", tmp_path / "configs")
    (tmp_path / "assets/tiny_reasoner").mkdir(parents=True)
    weights = tmp_path / "assets/tiny_reasoner/model.safetensors"
    monkeypatch.setattr(paper_results, "ROOT", tmp_path)
    digests = []
    for content in (b"old", b"new"):
        weights.write_bytes(content)
        digests.append(paper_results.digest("ktae", "ktae"))
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("claim", "text", "agrees"),
    [
        # differences 0.2 and 0.4: 0.3 with a half width of 12.706 * 0.1
        (
            Claim(text="more", column="val pass@1", sign=1),
            "val pass@1: 0.700 against 0.400 (grpo), +0.300 (-0.971 to +1.571)",
            "not shown",
        ),
        (
            Claim(text="not worse", column="val pass@1", sign=0, margin=1.0),
            "val pass@1: 0.700 against 0.400 (grpo), +0.300 (-0.971 to +1.571)",
            "yes",
        ),
        (
            Claim(text="rises", column="val pass@1", sign=1, arm="grpo", against="start"),
            "val pass@1: 0.400 against 0.200 (start), +0.200 (+0.200 to +0.200)",
            "yes",
        ),
        (
            Claim(text="falls", column="val pass@1", sign=-1, arm="grpo", against="start"),
            "val pass@1: 0.400 against 0.200 (start), +0.200 (+0.200 to +0.200)",
            "the opposite",
        ),
        (
            Claim(text="above a number", column="val pass@1", sign=1, arm="grpo", against=0.3),
            "val pass@1: 0.400 against 0.300 (0.3), +0.100 (+0.100 to +0.100)",
            "yes",
        ),
        (
            Claim(text="worse", column="val pass@1", sign=0, arm="grpo", against=0.5, margin=0.05),
            "val pass@1: 0.400 against 0.500 (0.5), -0.100 (-0.100 to -0.100)",
            "no",
        ),
        (
            Claim(text="equal", column="val pass@1", sign=1, arm="grpo", against="grpo, equal tokens"),
            "",
            "",
        ),
    ],
)
def test_a_claim_is_decided_by_its_interval(measured, claim, text, agrees):
    row = papers.claim_row("ktae", claim, EXPERIMENTS["ktae"][1])
    assert row == (("ktae", claim.text, text, "2", agrees) if text else None)


def test_every_claim_names_arms_and_columns_of_its_experiment():
    for name, (_, experiment) in EXPERIMENTS.items():
        assert experiment.claims, name
        for claim in experiment.claims:
            assert {claim.column, claim.against_column or claim.column} <= experiment.columns.keys(), (name, claim)
            arms = {*experiment.arms, "", "start", papers.EQUAL}
            assert claim.arm in arms and (isinstance(claim.against, float) or claim.against in arms), (name, claim)
