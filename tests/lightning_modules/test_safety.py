"""The safety test's parts: the bound against closed forms, the ledger, the splits."""

import json
import math
import multiprocessing
import os
import subprocess
import sys

import pytest
import scipy.stats
import torch

from lightning_modules.hc_rlhf import Ledger, check_disjoint, judge
from objectives import ClopperPearson, Hoeffding, StudentT
from support.errors import ConfigError


def test_the_bound_of_student_t_by_hand():
    costs = torch.tensor([0.0, 1.0, 2.0, 3.0])
    verdict = judge(costs, threshold=3.0, delta=0.05, bound=StudentT())
    # mean 1.5, s = sqrt(5/3), t_{0.95, 3} = 2.35336 from any table
    assert verdict.ucb == pytest.approx(1.5 + 2.35336343480182 * math.sqrt(5 / 3) / 2, rel=1e-9)
    assert verdict.mean == 1.5 and verdict.samples == 4 and not verdict.note
    assert not verdict.safe and judge(costs, 3.02, 0.05, StudentT()).safe, "the bound is 3.01915"


def test_constant_costs_pass_only_at_or_under_the_threshold():
    costs = torch.full((50,), 0.1)
    exactly = float(costs[0].double())
    assert judge(costs, exactly, 0.1, StudentT()).safe and "equal" in judge(costs, exactly, 0.1, StudentT()).note
    assert not judge(costs, 0.0999, 0.1, StudentT()).safe


@pytest.mark.parametrize("costs", [[0.1, float("nan")], [0.1], []])
def test_unusable_costs_are_errors(costs):
    with pytest.raises(ValueError):
        judge(torch.tensor(costs), 0.5, 0.1, StudentT())


@pytest.mark.parametrize("bound", [StudentT(), ClopperPearson(), Hoeffding(0.0, 1.0)])
def test_a_policy_on_the_border_passes_at_most_delta_of_the_time(bound):
    """2,000 tests of a policy whose true cost equals the threshold; the share that passes is binomial."""
    generator = torch.Generator().manual_seed(3)
    draws = (torch.rand(2000, 200, generator=generator) < 0.3).float()
    passed = sum(judge(costs, 0.3 - 1e-9, 0.1, bound).safe for costs in draws)
    # 99.9 % quantile of Binomial(2000, 0.1); Student's t is approximate on 0/1 costs, hence a little room
    limit = scipy.stats.binom.ppf(0.999, 2000, 0.1 if not isinstance(bound, StudentT) else 0.115)
    assert 0 <= passed <= limit
    if isinstance(bound, ClopperPearson):
        assert passed > 60, "a bound that never passes anything would be useless"


PROMPTS = [f"prompt {i}" for i in range(20)]
OUTCOME = {"verdict": {}, "delta": 0.05}


def ledger_of(tmp_path, prompts=PROMPTS):
    found = Ledger(prompts, str(tmp_path))
    found.path.parent.mkdir(parents=True, exist_ok=True)
    return found


def test_the_ledger_counts_divides_and_refuses(tmp_path):
    ledger = ledger_of(tmp_path)
    assert ledger.tests() == [] and ledger.begin("one", "q", 0.1, 2) == pytest.approx(0.05)
    assert ledger.find("one", "q") is None and len(ledger.tests()) == 1, "a test that has begun is spent"
    assert ledger.begin("one", "q", 0.1, 2) == pytest.approx(0.05) and len(ledger.tests()) == 1, (
        "and goes on after an interruption"
    )
    event = ledger.record("one", "q", OUTCOME)
    assert (
        ledger.find("one", "q") == event and ledger.find("one", "another") is None and ledger.find("two", "q") is None
    )
    assert ledger.begin("one", "another question", 0.1, 2) == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="tested 2 time"):
        ledger.begin("two", "q", 0.1, 2)
    assert ledger_of(tmp_path, ["something else"]).tests() == [], "another split has tests of its own"


@pytest.mark.parametrize(
    "attack",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(""),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]\n"),
        lambda path: path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n"),
        lambda path: path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n"),
        lambda path: path.write_text(path.read_text().replace('"one"', '"two"')),
        lambda path: path.write_text(path.read_text().replace("0.05", "0.01")),
        lambda path: path.write_bytes(b"\xff\xfe"),
    ],
    ids=[
        "deleted",
        "emptied",
        "cut",
        "replaced",
        "last removed",
        "first removed",
        "candidate edited",
        "delta edited",
        "no text",
    ],
)
def test_a_damaged_ledger_is_not_an_unused_split(tmp_path, attack):
    ledger = ledger_of(tmp_path)
    ledger.begin("one", "q", 0.05, 1)
    ledger.record("one", "q", OUTCOME)
    attack(ledger.path)
    for action in (
        ledger.tests,
        lambda: ledger.begin("three", "q", 0.1, 9),
        lambda: ledger_of(tmp_path, ["other"]).tests(),
    ):
        with pytest.raises(ConfigError, match="cannot be trusted"):
            action()


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": None}, {"prompts": [["x"]]}, {"candidate": ["x"]}, {"delta": "0.1"}, {"delta": -5},
        {"delta": 10**400},
        {"declared_delta": "x"}, {"declared_tests": None}, {"split": 5}, {"time": None},
    ],
    ids=str,
)  # fmt: skip
def test_an_event_of_another_form_is_refused_whatever_its_hash(tmp_path, change):
    """Its writer can compute the chain; a negative delta would give tests back."""
    from lightning_modules.hc_rlhf.ledger import _hash

    ledger = ledger_of(tmp_path)
    ledger.begin("one", "q", 0.1, 2)
    event = {name: value for name, value in ledger.journals[0].events()[0].items() if name != "hash"}
    event |= {"previous": ledger.journals[0].events()[-1]["hash"]} | change
    with open(ledger.path, "a") as file:
        file.write(json.dumps(event | {"hash": _hash(event)}) + "\n")
    with pytest.raises(ConfigError, match="cannot be trusted"):
        ledger.tests()


def test_a_copied_split_is_the_same_split(tmp_path):
    """Another order, another spelling, a part of it, a part of it among fresh prompts: what was tested is spent."""
    ledger_of(tmp_path).begin("one", "q", 0.1, 1)
    shouted = [f"  {prompt.upper()} " for prompt in reversed(PROMPTS)]
    chat = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    for prompts in (shouted, chat, PROMPTS[:3], [*PROMPTS[:1], *(f"fresh {i}" for i in range(30))]):
        with pytest.raises(ConfigError, match="tested 1 time"):
            ledger_of(tmp_path, prompts).begin("two", "q", 0.1, 1)
    with pytest.raises(ConfigError, match="1 of them under another split that shares prompts"):
        ledger_of(tmp_path, PROMPTS[:3]).begin("two", "q", 0.1, 1)


def test_what_is_the_same_test(tmp_path):
    """Only an unfinished one of the same split, candidate and question; it goes on with what it has spent."""
    ledger = ledger_of(tmp_path)
    assert ledger.begin("one", "q", 0.1, 4) == pytest.approx(0.025)
    assert ledger.begin("one", "q", 0.1, 1) == pytest.approx(0.025), "a later allowance changes no begun test"
    part = ledger_of(tmp_path, PROMPTS[:-1])
    assert part.begin("one", "q", 0.1, 4) == pytest.approx(0.025) and len(part.tests()) == 2, "a part is another split"
    part.record("one", "q", OUTCOME | {"delta": 0.0})
    assert ledger.find("one", "q") is None and part.find("one", "q")["delta"] == pytest.approx(0.025)
    assert ledger.budget(0.1, 4) == (0.1, 4, pytest.approx(0.05))


def test_tests_of_one_policy_count_together_on_whatever_prompts(tmp_path):
    fresh = [f"fresh {i}" for i in range(9)]
    assert Ledger(PROMPTS, str(tmp_path), "weights").begin("one", "q", 0.1, 2) == pytest.approx(0.05)
    again = Ledger(fresh, str(tmp_path), "weights")
    assert again.begin("one", "fresh", 0.1, 2) == pytest.approx(0.05)
    assert [test["on_other_prompts"] for test in again.tests()] == [True, False]
    with pytest.raises(ConfigError, match=r"tested 2 time\(s\), 2 of them of the same policy on other prompts"):
        Ledger(["more"], str(tmp_path), "weights").begin("warmer", "q", 0.1, 9)
    assert Ledger(["more"], str(tmp_path), "other weights").begin("two", "q", 0.1, 1) == pytest.approx(0.1)
    assert ledger_of(tmp_path, ["even more"]).tests() == []


@pytest.mark.parametrize(
    "declarations",
    [
        [(0.1, 1), (0.1, 2), (0.1, 3), (0.1, 4)],
        [(0.1, 2), (0.1, 2), (0.1, 4), (0.5, 2), (0.1, 100)],
        [(0.1, 1), (0.5, 1), (0.5, 4), (0.9, 100)],
        [(0.1, 2), (0.01, 1), (0.04, 1), (0.05, 10), (0.1, 2), (0.1, 2)],
        [(0.01, 10), (0.1, 10), (0.1, 2), (0.01, 10)],
        [(0.1, 100), (0.1, 1), (0.1, 2), (0.1, 3)],
    ],
)
def test_raising_a_declaration_buys_nothing(tmp_path, declarations):
    """The sum of what was spent stays within the smallest delta, the number of tests within the smallest allowance."""
    ledger, paid = ledger_of(tmp_path), []
    for number, (delta, allowance) in enumerate(declarations):
        try:
            paid.append((delta, allowance, ledger.begin(f"policy {number}", "q", delta, allowance)))
        except ConfigError as error:
            assert "declared before the first" in str(error)
        assert sum(share for _, _, share in paid) <= min(delta for delta, _, _ in paid) * (1 + 1e-9)
        assert len(paid) <= min(allowance for _, allowance, _ in paid)
    assert paid and len(paid) < len(declarations)


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_kill_in_the_middle_of_a_line_loses_only_that_line(cut):
    ledger = Ledger(PROMPTS)
    ledger.begin("one", "q", 0.1, 2)
    head, before = ledger.journals[0]._head.read_text(), ledger.path.read_bytes()
    ledger.begin("two", "q", 0.1, 2)
    ledger.path.write_bytes(ledger.path.read_bytes()[: len(before) + cut])
    ledger.journals[0]._head.write_text(head)  # the count follows the line
    assert [event["candidate"] for event in Ledger(PROMPTS).journals[0].events()] == ["one"]
    ledger.begin("three", "q", 0.1, 2)
    assert ledger.path.read_bytes().startswith(before) and ledger.path.read_bytes().count(b"\n") == 2
    ledger.path.write_bytes(before[:-1])
    with pytest.raises(ConfigError, match="cannot be trusted"):
        ledger.tests()  # an unfinished line that was counted is damage


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    from lightning_modules.hc_rlhf import ledger as module

    ledger = ledger_of(tmp_path)
    ledger.begin("one", "q", 0.1, 3)
    before = ledger.path.read_bytes()

    def full(file, line):
        file.write(line[:30])
        file.flush()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", full)
        with pytest.raises(ConfigError, match="cannot be written: .*No space left.*free space"):
            ledger.begin("two", "q", 0.1, 3)
    assert ledger.path.read_bytes() == before
    assert ledger.begin("two", "q", 0.1, 3) and len(ledger.tests()) == 2


def test_a_ledger_of_an_earlier_version_still_counts(tmp_path):
    """Its events lack what was declared."""
    ledger = ledger_of(tmp_path)
    for journal in ledger.journals:
        event = {"split": ledger.split, "prompts": sorted(ledger.prompts), "time": "2025-01-01T00:00:00Z"}
        journal.append(event | {"candidate": "one", "question": "q", "delta": 0.1})
        journal.append(event | {"candidate": "one", "question": "q", "delta": 0.1, "verdict": {}})
    assert len(ledger.tests()) == 1 and ledger.find("one", "q") is not None
    with pytest.raises(ConfigError, match="tested 1 time"):
        ledger.begin("two", "q", 0.1, 2)


def test_a_clock_that_goes_back_changes_no_count_and_is_written_down(tmp_path, monkeypatch):
    from lightning_modules.hc_rlhf import ledger as module

    ledger = ledger_of(tmp_path)
    ledger.begin("one", "q", 0.1, 3)
    monkeypatch.setattr(module.time, "gmtime", lambda: (2001, 1, 1, 0, 0, 0, 0, 1, 0))
    ledger.begin("two", "q", 0.1, 3)
    assert len(ledger.tests()) == 2 and "clock" in ledger.tests()[1] and "clock" not in ledger.tests()[0]


@pytest.mark.parametrize("link", ["folder", "journal", "nothing"])
def test_a_ledger_behind_a_link_forgets_no_test(tmp_path, link):
    """A link to the folder or to the journal is the same journal; one to a place that keeps nothing is refused."""
    ledger = ledger_of(tmp_path / "real")
    if link == "nothing":
        ledger.path.symlink_to(os.devnull)
        with pytest.raises(ConfigError, match="cannot be trusted: it is not a regular file"):
            ledger.begin("one", "q", 0.1, 1)
        return
    ledger.begin("one", "q", 0.1, 1)
    if link == "folder":
        (tmp_path / "linked").symlink_to(tmp_path / "real")
    else:
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked/journal.jsonl").symlink_to(ledger.path)
    for folder in ("linked", "real"):
        with pytest.raises(ConfigError, match="tested 1 time"):
            Ledger(PROMPTS, str(tmp_path / folder)).begin("two", "q", 0.1, 1)


def test_another_home_is_said_on_the_certificate(tmp_path):
    """The cache follows HOME; the default place does not."""
    code = "from lightning_modules.hc_rlhf import Ledger; ledger = Ledger(['a']); print(ledger.path, ledger.place)"
    variables = {name: value for name, value in os.environ.items() if name != "LIGHTNING_POSTTRAIN_CACHE"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=variables | {"HOME": str(tmp_path)}, capture_output=True, text=True
    ).stdout
    assert out.startswith(str(tmp_path)) and "not in the default place" in out


def _spend(folder, name, queue):
    ledger = Ledger(PROMPTS, folder)
    with ledger.locked():
        try:
            ledger.begin(name, "q", 0.1, 1)
            queue.put("tested")
        except ConfigError:
            queue.put("refused")


def test_two_processes_cannot_both_spend_the_last_test(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_spend, args=(str(tmp_path), f"policy {i}", queue)) for i in range(4)]
    for worker in workers:
        worker.start()
    outcomes = sorted(queue.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert outcomes == ["refused"] * 3 + ["tested"]
    assert len(ledger_of(tmp_path).tests()) == 1


def test_shared_and_repeated_prompts_are_refused_with_their_count():
    check_disjoint(["a", "b"], {"the train split": ["c", "d"]})
    with pytest.raises(ConfigError, match="2 of 3 prompts of the safety split are also in the preference pairs"):
        check_disjoint(["One  two", "b", "c"], {"the train split": ["z"], "the preference pairs": ["one two", " B "]})
    with pytest.raises(ConfigError, match="1 prompts of the safety split are repeated"):
        check_disjoint(["a", "A "], {})
    with pytest.raises(ConfigError, match="1 of 1"):
        check_disjoint([[{"role": "user", "content": "Hello"}]], {"the val split": ["hello"]})
