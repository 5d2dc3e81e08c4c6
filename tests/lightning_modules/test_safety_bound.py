"""The bound of the safety test in use: its default, its width in candidate selection, stopping early, the study."""

import itertools
import json
import math
import re

import pytest
import scipy.stats
import torch

from benchmarks import safety_guarantee
from benchmarks.safety_guarantee import ARMS, arguments
from datamodules import RecordsPrompts
from lightning_modules import Constraint, SafetyTest
from lightning_modules.hc_rlhf import Ledger
from lightning_modules.hc_rlhf.safety_test import Verdict, run_test
from main import CLI, main
from objectives import Betting, ClopperPearson, ConfidenceSequence, EmpiricalBernstein, Hoeffding, StudentT
from rewards import RecordsCost
from rewards.models import SPANS
from support.errors import ConfigError
from tests.helpers import ROOT
from tests.helpers.capital import capitals
from tests.lightning_modules.test_hc_rlhf import rule_based, train

QUICK = ("shipped", "lagrangian")  # arms of the study whose command lines the normal suite reads
RANGES = {**SPANS, "records": RecordsCost.span, "wide": (-2.0, 3.0, False), "half-open": (0.0, math.inf, False)}


# ---- which bound ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "span"), RANGES.items())
def test_betting_is_the_default_where_the_costs_range_is_known(name, span):
    bound = SafetyTest().bound_for(None, span)
    if math.isfinite(span[1]):
        assert isinstance(bound, Betting) and (bound.low, bound.high) == span[:2]
    else:
        assert isinstance(bound, StudentT)


@pytest.mark.parametrize(
    ("bound", "span"),
    [
        (Betting(0.0, 0.5), SPANS["probability"]),
        (Betting(0.1, 1.0), SPANS["unsafe"]),
        (Betting(), (-2.0, 3.0, False)),
        (Betting(), SPANS["raw"]),
        (Hoeffding(0.0, 0.99), RecordsCost.span),
    ],
)
def test_a_range_that_is_narrower_than_the_costs_is_refused(bound, span):
    with pytest.raises(ConfigError, match=r"but costs can lie in"):
        SafetyTest().bound_for(bound, span)
    assert SafetyTest().bound_for(Betting(-9.0, 9.0), (-2.0, 3.0, False)).high == 9.0, "a wider one holds"


@pytest.mark.parametrize("bound", [StudentT(), Hoeffding(), EmpiricalBernstein(), ClopperPearson(), None])
def test_only_betting_may_look_several_times(bound):
    span = SPANS["unsafe"] if bound is not None else SPANS["raw"]
    with pytest.raises(ConfigError, match=r"test.sequential looks at the costs several times"):
        SafetyTest(sequential=True).bound_for(bound, span)
    assert isinstance(SafetyTest(sequential=True).bound_for(None, SPANS["probability"]), Betting)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_holds_at_least_one_response(size):
    with pytest.raises(ConfigError, match="test.batch_size"):
        SafetyTest(batch_size=size)


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """Everything of a command line but the run itself."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setattr(CLI, "_run_subcommand", lambda self, subcommand: None)

    def parse(*words: str):
        return main(["fit", *words, "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"])

    return parse


@pytest.mark.parametrize(
    ("words", "kind", "settings"),
    [
        ([], Betting, {"low": 0.0, "high": 1.0, "seed": 0}),
        (["--model.bound=objectives.Betting", "--model.bound.seed=3"], Betting, {"high": 1.0, "seed": 3}),
        (["--model.bound=objectives.StudentT"], StudentT, {}),
        (["--model.constraint.cost_scale=raw"], StudentT, {}),
        (["--model.constraint.cost_scale=unsafe", "--model.test.sequential=true"], Betting, {"high": 1.0}),
    ],
)
def test_the_shipped_configuration_bets_and_the_papers_test_can_be_chosen(parsed, words, kind, settings):
    module = parsed(f"--config={ROOT}/configs/hc_rlhf.yaml", *words).model
    assert type(module.bound) is kind and settings.items() <= vars(module.bound).items()


# ---- candidate selection --------------------------------------------------------------------------------------------

DELTA, ALLOWANCE, ONES, WINDOW, PROMPTS = 0.2, 4, 12, 60, 150


def closed_form(name: str, mean: float, std: float, size: int, delta: float) -> float:
    """Width of a bound from the textbook."""
    logarithm = math.log(2 / delta)
    return {
        "StudentT": lambda: scipy.stats.t.ppf(1 - delta, size - 1) * std / math.sqrt(size),
        "Hoeffding": lambda: math.sqrt(math.log(1 / delta) / (2 * size)),
        "EmpiricalBernstein": lambda: std * math.sqrt(2 * logarithm / size) + 7 * logarithm / (3 * (size - 1)),
        "ClopperPearson": lambda: (
            scipy.stats.binomtest(round(mean * size), size).proportion_ci(1 - 2 * delta, "exact").high - mean
        ),
    }[name]()


def observed(model, bound):
    """A module after it has seen a window of 0/1 costs."""
    limit = Constraint(threshold=0.3, delta=DELTA, c1=1.5, c2=2.0, lambda_init=2.0, lambda_lr=0.1)
    module = rule_based(model, bound=bound, constraint=limit, test=SafetyTest(allowance=ALLOWANCE))
    module.safety_size = PROMPTS
    costs = torch.zeros(WINDOW)
    costs[:ONES] = 1.0
    module.observe(type("Batch", (), {"rewards": {"cost": costs}})())
    return module


@pytest.mark.parametrize("name", ["StudentT", "Hoeffding", "EmpiricalBernstein", "ClopperPearson"])
def test_the_constraint_uses_the_width_of_the_tests_own_bound_and_its_share_of_delta(assistant, name):
    bounds = {kind.__name__: kind() for kind in (StudentT, Hoeffding, EmpiricalBernstein, ClopperPearson)}
    module = observed(assistant, bounds[name])
    mean = ONES / WINDOW
    std = math.sqrt(WINDOW * mean * (1 - mean) / (WINDOW - 1))
    widths = [closed_form(name, mean, std, size, DELTA / ALLOWANCE) for size in (WINDOW, PROMPTS)]
    upper = mean + 1.5 * widths[0] + 2.0 * widths[1]
    assert module.pessimism.bound == pytest.approx(upper, rel=1e-6)
    assert module.dual.value == pytest.approx(2.0 * math.exp(0.1 * 2.0 * (upper - 0.3)), rel=1e-6)
    if name == "StudentT":
        assert module.pessimism.bound == pytest.approx(mean + module.pessimism.kappa * std)


def test_a_candidate_that_just_meets_the_constraint_passes_the_test_by_default(assistant):
    """By simulation: without C1 and with C2 = 1, U+ is where the test passes about half of its candidates."""
    module = observed(assistant, None)
    module.constraint.c1, module.constraint.c2 = 0.0, 1.0
    module.observe(type("Batch", (), {"rewards": {"cost": torch.zeros(0)}})())
    generator = torch.Generator().manual_seed(1)
    draws = (torch.rand(80, PROMPTS, generator=generator) < ONES / WINDOW).double()
    level = DELTA / ALLOWANCE
    passed = sum(module.bound(costs, level) <= module.pessimism.bound for costs in draws)
    assert isinstance(module.bound, Betting) and 24 <= passed <= 72
    undivided = sum(module.bound(costs, level) <= ONES / WINDOW + _t_width(DELTA) for costs in draws)
    assert undivided < 16, "with Student's width and the whole delta nearly no candidate would pass"


def _t_width(delta: float) -> float:
    mean = ONES / WINDOW
    return scipy.stats.t.ppf(1 - delta, PROMPTS - 1) * math.sqrt(mean * (1 - mean) / PROMPTS)


# ---- stopping early -------------------------------------------------------------------------------------------------


class ByRow:
    """A cost that reads the row; the batch of the test is the rows themselves."""

    name = "cost"

    def __init__(self):
        self.seen = []

    def __call__(self, rows):
        self.seen.append([row["id"] for row in rows])
        return torch.tensor([row["cost"] for row in rows], dtype=torch.float64)


def outcome_of(costs, threshold, delta, **settings) -> tuple[Verdict, dict, ByRow]:
    cost, test = ByRow(), SafetyTest(**settings)
    rows = [{"id": str(place), "prompt": "", "cost": float(value)} for place, value in enumerate(costs)]
    outcome = run_test(rows, lambda part: part, cost, [cost], threshold, delta, Betting(), test)
    return Verdict(**outcome["verdict"]), outcome, cost


def first_crossing(costs: list[float], claim: float, delta: float) -> int | None:
    """Number of costs after which the paper's capital against the claim has first reached 1/delta."""
    after = enumerate(capitals(costs, claim, delta, len(costs)), start=1)
    return next((count for count, capital in after if capital >= 1 / delta), None)


@pytest.mark.parametrize("batch_size", [5, 32, 500])
def test_the_verdict_is_that_of_the_fixed_test_and_comes_at_the_first_look_that_decides(batch_size):
    generator = torch.Generator().manual_seed(4)
    saved = {True: 0, False: 0}
    for power, share in itertools.product((1, 5, 30), (0.5, 0.8, 0.95, 1.0, 1.1, 1.6)):
        costs = torch.rand(120, generator=generator, dtype=torch.float64) ** power
        threshold = float(costs.mean()) / share
        if threshold >= 1:
            continue
        fixed, _, _ = outcome_of(costs, threshold, 0.1)
        early, outcome, cost = outcome_of(costs, threshold, 0.1, sequential=True, batch_size=batch_size)
        order = Betting().order(120).tolist()
        assert early.safe == fixed.safe and early.prompts == fixed.prompts == fixed.samples == 120
        assert [int(place) for part in cost.seen[::2] for place in part] == order[: early.samples]
        assert outcome["costs"] == costs[order][: early.samples].tolist()
        crossing = first_crossing(costs[order].tolist(), threshold, 0.1)
        assert (crossing is not None) == early.safe
        if early.safe:
            assert early.samples == min(120, batch_size * math.ceil(crossing / batch_size))
            assert early.ucb <= threshold
        else:
            best = [*costs[order][: early.samples].tolist(), *[0.0] * (120 - early.samples)]
            assert early.samples == 120 or first_crossing(best, threshold, 0.1) is None, "given up too early"
            assert early.ucb > threshold
        assert len(early.details) == 1 + (early.samples < 120)
        saved[early.safe] += 120 - early.samples
    assert (saved[True] > 0 and saved[False] > 0) == (batch_size < 120)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_test_that_stops_early_errs_at_most_delta_of_the_time(batch_size):
    """Summed over all 0/1 sequences, so no sampling error: P(SAFE) at a mean equal to the threshold."""
    shares = []
    for mean in (0.4, 0.75):
        wrong = 0.0
        for costs in itertools.product([0.0, 1.0], repeat=6):
            verdict, _, _ = outcome_of(costs, mean, 0.3, sequential=True, batch_size=batch_size)
            wrong += verdict.safe * mean ** sum(costs) * (1 - mean) ** (6 - sum(costs))
        shares.append(wrong)
    assert 0 < max(shares) <= 0.3


def test_rows_with_one_id_are_answered_independently():
    """Random numbers of a response come from the row's id, so it must be one of its own also across batches."""
    rows = [{"id": "same", "prompt": str(place), "cost": 0.5} for place in range(8)]
    cost, asked = ByRow(), []
    test = SafetyTest(sequential=True, batch_size=3)
    run_test(rows, lambda part: asked.extend(part) or part, cost, [], 0.6, 0.1, Betting(), test)
    assert len({row["id"] for row in asked}) == len(asked) and [row["id"] for row in rows] == ["same"] * 8


def test_the_papers_bound_stands_beside_the_chosen_one():
    costs = torch.tensor([0.1] * 95 + [0.9] * 5, dtype=torch.float64)
    mean, std = float(costs.mean()), float(costs.std())
    by_hand = mean + scipy.stats.t.ppf(0.9, 99) * std / 10
    threshold = by_hand + 0.001
    verdict, _, _ = outcome_of(costs, threshold, 0.1)
    assert verdict.student_t_ucb == pytest.approx(by_hand) and verdict.student_t_verdict == "SAFE"
    assert verdict.text == "NO SOLUTION FOUND" and verdict.bound == "Betting" and verdict.ucb > threshold
    assert re.search(rf"paper's test SAFE: Student's t {by_hand:.4f}", verdict.details[0])


def test_a_verdict_of_an_earlier_version_is_still_read():
    fields = {"safe": True, "ucb": 0.1, "mean": 0.0, "std": 0.1, "samples": 9, "threshold": 0.2, "delta": 0.1}
    assert Verdict(**fields, bound="StudentT", assumption="normal").details == []


# ---- a whole run ----------------------------------------------------------------------------------------------------


def data():
    return RecordsPrompts(32, 8, 150, seed=5)


def certificate(folder):
    return json.loads((folder / "local/certificate/certificate.json").read_text())


def test_a_run_bets_shows_the_papers_bound_and_stops_early_with_the_same_verdict(
    tmp_path, assistant, capsys, monkeypatch
):
    outcomes, costs = {}, {}
    for name, settings in (("fixed", {}), ("early", {"sequential": True, "batch_size": 20})):
        monkeypatch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(tmp_path / f"{name}_cache"))
        module = rule_based(assistant, test=SafetyTest(**settings))
        train(module, tmp_path / name, data())
        outcomes[name] = certificate(tmp_path / name), capsys.readouterr().out, module.verdict
        (test,) = Ledger([row["prompt"] for row in data().rows("safety")]).tests()
        costs[name] = torch.tensor(test["costs"])
    facts, out, _ = outcomes["fixed"]
    assert facts["bound"] == "Betting" and facts["samples"] == facts["prompts"] == 150 and "stopped" not in out
    assert facts["student_t_ucb"] < facts["ucb"] and "paper's test SAFE: Student's t" in out
    facts, out, early = outcomes["early"]
    assert early.text == outcomes["fixed"][2].text == "SAFE" and facts["student_t_verdict"] == "SAFE"
    assert facts["samples"] < facts["prompts"] == 150 and facts["samples"] % 20 == 0
    assert f"stopped      after {early.samples} of 150 responses, {150 - early.samples} saved" in out
    assert "looked at after every 20 responses" in facts["assumption"]
    used = Betting().order(150)[: early.samples]
    assert costs["early"].tolist() == costs["fixed"][used].tolist(), "the same responses, up to the decision"


def test_an_interrupted_sequential_test_repeats_itself(tmp_path, assistant):
    """Killed at its second look, the test starts again with the same responses and is counted once."""

    class Interrupted(Exception):
        pass

    def module():
        limit = Constraint(threshold=0.3)
        return rule_based(assistant, constraint=limit, test=SafetyTest(sequential=True, batch_size=5))

    def killed(self, costs):
        looks.append(costs)
        if len(looks) == 2:
            raise Interrupted
        original(self, costs)

    looks, original = [], ConfidenceSequence.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfidenceSequence, "update", killed)
        with pytest.raises(Interrupted):
            train(module(), tmp_path, data())
    resumed = module()
    train(resumed, tmp_path, data())
    rows = [row["prompt"] for row in data().rows("safety")]
    (test,) = Ledger(rows).tests()
    assert test["costs"][:10] == [float(cost) for look in looks for cost in look]
    assert resumed.verdict.samples == len(test["costs"]) > 10


# ---- configurations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 1000])
def test_the_actor_preset_has_the_values_of_the_official_script(parsed, size):
    files = [f"--config={ROOT}/configs/{name}.yaml" for name in ("hc_rlhf", "hc_rlhf/actor")]
    cli = parsed(*files, *([f"--data.safety_size={size}"] if size != 1000 else []))
    module = cli.model
    limit = module.constraint
    assert (limit.c1, limit.c2, limit.delta, limit.threshold, limit.window) == (4.0, 2.0, 0.1, 0.0, 256)
    assert isinstance(module.bound, StudentT) and cli.datamodule.sizes["safety"] == size
    optimizer = module.optimizer_callable([torch.nn.Parameter(torch.zeros(1))])
    schedule = module.scheduler_callable(optimizer)
    steps, rates, betas = cli.trainer.max_steps, [], set()
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        betas.add(tuple(optimizer.param_groups[0]["betas"]))
        optimizer.step()
        schedule.step()
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(5e-6) and top == 0.03 * steps - 1 and betas == {(0.9, 0.95)}
    assert rates[0] < 1e-8 and rates == [*sorted(rates[:top]), *sorted(rates[top:], reverse=True)]
    for step in range(top, steps):  # half a cosine down to zero
        progress = (step - top) / (steps - 1 - top)
        assert rates[step] == pytest.approx(5e-6 * (1 + math.cos(math.pi * progress)) / 2, abs=1e-9)


@pytest.mark.parametrize("arm", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in ARMS])
def test_the_study_trains_the_configurations_that_the_page_cites(parsed, arm):
    page = (ROOT / "docs/hc_rlhf.md").read_text()
    assert all(f"`configs/{name}.yaml`" in page for name in ARMS[arm].configs)
    words = arguments(arm, 3)
    changed = {word.split("=")[0] for word in words} - {"--config", "--seed_everything"}
    assert changed <= {"--model.constraint.c1"}, "an arm is its configurations, up to the pessimism"
    module = parsed(*(word.replace("configs/", f"{ROOT}/configs/") for word in words)).model
    assert module.test_params.skip == ("baselines" in ARMS[arm].configs[-1])
    assert isinstance(module.bound, Betting)


def test_the_study_keeps_finished_runs_and_counts_unsafe_policies_that_were_returned(tmp_path, monkeypatch, capsys):
    """The tested arm returned one safe and one unsafe policy and refused one candidate; the baseline refuses none."""
    parts = {"before": {}, "after": {}, "minutes": 1.0, "true_reward": 0.5, "true_cost": 0.0, "threshold": 0.1}
    runs = {
        "rule": [(True, 0.05), (True, 0.15), (False, 0.3)],
        "reward_only": [(None, 0.4), (None, 0.05), (None, 0.4)],
    }

    def trained(arm, seed, folder):
        safe, cost = runs[arm][seed]
        return {**parts, "cost": cost, "verdict": None if safe is None else {"safe": safe}}

    monkeypatch.setattr(safety_guarantee, "train", trained)
    page = tmp_path / "page.md"
    marks = [f"<!-- {part} of benchmarks/safety_guarantee.py -->\n\nEARLIER\n\n" for part in ("seeds", "arms")]
    page.write_text("top\n" + "".join(f"{mark}<!-- end of the tables -->\nbetween\n" for mark in marks))
    settings = {"arms": list(runs), "seeds": 3, "results": str(tmp_path / "results")}
    safety_guarantee.main(**settings, page=str(page))
    monkeypatch.setattr(safety_guarantee, "train", None)  # cannot be called
    safety_guarantee.main(**settings)
    text = page.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    (tested,), (baseline,) = ([row for row in rows if row[0] == ARMS[arm].title] for arm in runs)
    assert tested[1:5] == ["3", "0.1", "0.333 [0.008, 0.906]", "0.333 [0.008, 0.906]"]
    assert baseline[1:5] == ["3", "0.1", "0.667 [0.094, 0.992]", "never"] and baseline[5] == "0.283 ± 0.202"
    assert "EARLIER" not in text and text.startswith("top\n") and text.count("between") == 2
    with pytest.raises(ConfigError, match="--arms has 'shiped'"):
        safety_guarantee.main(arms=["shiped"])
