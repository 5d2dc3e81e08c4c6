"""One problem of rStar-Coder's pipeline: inputs, outputs by an oracle or a vote, and the solutions that are kept."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from assets.many_inputs import Outcome, Program, RunLimits, literal, run_many
from assets.mutual_verification import Agreement, Vector, Vote, program_in, vector_of, vote
from assets.problem_inputs import InputPlan, Inputs, make_inputs
from rewards.code import code_of
from rewards.sandbox import SandboxError

Row = dict[str, Any]
#: columns of a problem that its solutions' rows have too
KEPT_COLUMNS = ("prompt", "code_prompt", "entry_point", "rating", "task")


@dataclass(frozen=True)
class Verification:
    """The settings by which problems are verified.

    Fields:
        inputs, agreement, limits: see their classes.
        keep: solutions per synthetic problem, the fastest first.
        keep_seed: solutions per seed problem; all if None.
        unsolved_seeds: whether all solutions of a seed problem are kept if none passes all tests.
    """

    inputs: InputPlan
    agreement: Agreement
    limits: RunLimits
    keep: int
    keep_seed: int | None
    unsolved_seeds: bool


@dataclass
class Candidate:
    """A candidate solution.

    Fields:
        text: as it was written.
        program: its program; None without one.
        reason: why it is not verified: it has no program, failed on an input, or has other outputs. "" if it agrees.
        vector: its outputs.
        seconds: CPU seconds on all inputs.
    """

    text: str
    program: Program | None
    reason: str = ""
    vector: Vector = ()
    seconds: float = 0.0


@dataclass
class Checked:
    """The result of a problem; plain data, which is written to a file.

    Fields:
        rows: the rows of its kept solutions.
        stage, reason: where and why it was dropped, "" if it was not.
        scales: scale -> what happened to its inputs -> number.
        candidates: reason -> number of candidates; "" for those that agree with the outputs.
        agreement: of the candidates; None if they did not vote.
        labels: (right labels, all labels) of the vote by the oracle; (0, 0) if there was no such vote.
    """

    rows: list[Row] = field(default_factory=list)
    stage: str = ""
    reason: str = ""
    scales: dict[str, dict[str, int]] = field(default_factory=dict)
    candidates: dict[str, int] = field(default_factory=dict)
    agreement: float | None = None
    labels: tuple[int, int] = (0, 0)


def check_problem(problem: Row, texts: list[str], missing: int, generators: list[str], plan: Verification) -> Checked:
    """Verify a problem.

    Args:
        problem: a data row, see assets/rstar_coder.py.
        texts: of the candidates.
        missing: number of candidates that were cut off or not written.
        generators: texts with generators; the first one with enough valid inputs counts.
        plan: how to verify.
    """
    checked = Checked()
    try:
        return _checked(problem, texts, missing, generators, plan, checked)
    except SandboxError as error:
        checked.stage, checked.reason = "sandbox", f"the sandbox failed: {error}"
        return checked


def _checked(
    problem: Row, texts: list[str], missing: int, generators: list[str], plan: Verification, checked: Checked
) -> Checked:
    if not texts:
        checked.stage, checked.reason = "candidates", "no candidate was written"
        return checked
    made = _inputs(problem, generators, plan)
    checked.scales = {scale: dict(counts) for scale, counts in made.counts.items()}
    if len(made.values) < plan.inputs.at_least:
        checked.stage = "inputs"
        checked.reason = "no valid input" if not made.values else "too few valid inputs"
        return checked
    reads = not problem.get("entry_point")
    inputs, outputs, wanted = made.values, [], None
    if problem.get("oracle"):
        oracle = Program(problem["oracle"], problem.get("entry_point"))
        outcomes = run_many(oracle, inputs, plan.limits, max_failures=len(inputs))
        # An input on which the oracle fails is not one of the problem's.
        whole = [(each, outcome) for each, outcome in zip(inputs, outcomes, strict=True) if outcome.status == "ok"]
        if failed := len(inputs) - len(whole):
            checked.scales["all"] = {"the oracle failed": failed}
        inputs, outputs = [each for each, _ in whole], [outcome for _, outcome in whole]
        if len(inputs) < plan.inputs.at_least:
            checked.stage, checked.reason = "outputs", "the oracle failed on too many inputs"
            return checked
        wanted = vector_of(outputs, reads)
    candidates = run_candidates(problem, texts, inputs, plan.limits)
    result = _vote(problem, candidates, missing, plan)
    checked.agreement = result.agreement
    if wanted is None:
        if result.refusal or result.vector is None:
            checked.stage, checked.reason = "outputs", result.refusal
        wanted = result.vector
    elif not result.refusal and result.vector is not None:
        checked.labels = (sum(a == b for a, b in zip(result.vector, wanted, strict=True)), len(wanted))
    for each in candidates:
        if not each.reason and each.vector != wanted:
            each.reason = "other outputs"
    checked.candidates = dict(Counter(each.reason for each in candidates)) | ({"missing": missing} if missing else {})
    if not checked.reason:
        _keep(problem, inputs, outputs, candidates, plan, checked)
    return checked


def _inputs(problem: Row, generators: list[str], plan: Verification) -> Inputs:
    """The inputs of the first generator with enough of them, or of the one with the largest number."""
    sources = [problem["generator"]] if problem.get("generator") else [code_of(text) for text in generators] or [""]
    made = Inputs()
    for source in sources:
        inputs = make_inputs(problem, source, plan.inputs, plan.limits)
        if len(inputs.values) > len(made.values) or not made.counts:
            made = inputs
        if len(made.values) >= plan.inputs.at_least:
            break
    return made


def run_candidates(
    problem: Row, texts: list[str], inputs: list[Any], limits: RunLimits, max_failures: int = 1
) -> list[Candidate]:
    """Run every different program on the inputs.

    Args:
        max_failures: as in `run_many`.
    """
    candidates = [Candidate(text, *program_in(problem, text)) for text in texts]
    outcomes: dict[Program, list[Outcome]] = {}
    for each in candidates:
        if each.program is None:
            continue
        if each.program not in outcomes:
            outcomes[each.program] = run_many(each.program, inputs, limits, max_failures)
        results = outcomes[each.program]
        each.vector, each.seconds = vector_of(results, each.program.entry is None), sum(one.seconds for one in results)
        each.reason = next((one.status for one in results if one.status != "ok"), "")
    return candidates


def _vote(problem: Row, candidates: list[Candidate], missing: int, plan: Verification) -> Vote:
    ran = [each for each in candidates if each.program is not None]
    programs = [each.program.source for each in ran if each.program is not None]
    total, agreement = len(candidates) + missing, plan.agreement
    return vote([each.vector for each in ran], programs, total, agreement.threshold(problem), agreement.programs)


def _keep(
    problem: Row,
    inputs: list[Any],
    outputs: list[Outcome],
    candidates: list[Candidate],
    plan: Verification,
    checked: Checked,
) -> None:
    """Choose the solutions, the fastest first, and write their rows."""
    seed = bool(problem.get("oracle"))
    agreeing = [each for each in candidates if not each.reason]
    chosen = sorted(agreeing, key=lambda each: each.seconds)
    if seed and not agreeing and plan.unsolved_seeds:
        chosen = list(candidates)
    chosen = list({each.text: each for each in chosen}.values())[: plan.keep_seed if seed else plan.keep]
    if not chosen:
        checked.stage, checked.reason = "solutions", "no candidate passes all tests"
        return
    tests = _tests(problem, inputs, outputs, agreeing[0].vector if agreeing else ())
    for number, each in enumerate(chosen):
        name = str(problem["id"]) if len(chosen) == 1 else f"{problem['id']}/{number}"
        checked.rows.append(
            {column: problem[column] for column in KEPT_COLUMNS if problem.get(column) is not None}
            | {"id": name, "response": each.text, "verified": not each.reason, "kind": "seed" if seed else "synthetic"}
            | {"agreement": checked.agreement, "seconds": each.seconds}
            | tests
        )


def _tests(problem: Row, inputs: list[Any], outputs: list[Outcome], vector: Vector) -> Row:
    """The columns that rewards.CodeTests reads, from the outputs of the oracle or a vector that was voted for."""
    entry = problem.get("entry_point")
    texts = vector or vector_of(outputs, reads=not entry)
    if not entry:
        return {"cases": [{"input": each, "output": text} for each, text in zip(inputs, texts, strict=True)]}
    pairs = zip(inputs, texts, strict=True)
    return {"tests": "".join(f"assert {entry}(*{literal(each)}) == {text}\n" for each, text in pairs)}
