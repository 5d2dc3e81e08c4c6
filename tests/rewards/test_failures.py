"""Rewards that raise, hang or return rubbish; an HTTP judge that is slow, wrong or down; runs where too much fails."""

import json
import math
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import lightning as L
import pytest
import torch

from callbacks import RolloutCheckpoint
from lightning_modules import HCRLHF
from lightning_modules.core.terms import Shaping
from lightning_modules.hc_rlhf.module import Constraint
from policies import PolicyParams
from rewards import ExactAnswer, Failure, FunctionReward, Guarded, HTTPJudge, PerTask, Reward, total_reward
from rollouts import BatchPlan, RolloutBatch, SamplingParams
from support.errors import ConfigError
from tests.helpers import build, fit, sums, weights
from tests.rewards.test_per_task import batch as mixed
from tests.rewards.test_rewards import batch_of

ROWS = [{"prompt": "p", "answer": "x", "id": "1"}, {"prompt": "q", "answer": "y", "id": "2"}]


class ByText(Reward):
    """Does what the completion says."""

    def score(self, batch):
        return [self._one(text) for text in batch.completions]

    def _one(self, text):
        if text == "raise":
            raise KeyError("no such thing")
        if text == "exit":
            raise SystemExit(1)
        if text == "loop":
            while True:
                pass
        if text == "sleep":
            time.sleep(1.5)
        return {"nan": math.nan, "inf": -math.inf, "none": None}.get(text, 1.0)


def test_failures_of_single_completions_become_nan():
    batch = batch_of(["good", "raise", "nan", "inf", "none", "good"], ROWS)
    guarded = Guarded(ByText(weight=2.0, name="mine"), timeout_s=5)
    values = guarded(batch)
    assert values.isnan().tolist() == [False, True, True, True, True, False] and values[0] == values[5] == 1
    assert batch.failures["mine"].tolist() == [0, 1, 1, 1, 1, 0] and guarded.weight == 2


def test_hangs_are_ended_or_left_behind():
    before = threading.active_count()
    batch, guarded = batch_of(["loop", "good", "sleep", "good"], ROWS), Guarded(ByText(), timeout_s=0.2)
    assert guarded(batch).isnan().tolist() == [True, False, True, False]
    assert batch.failures["by_text"].tolist() == [2, 0, 2, 0] and guarded.last_failure == "no score within 0.2 s"
    deadline = time.monotonic() + 10  # the loop ends by an exception, the sleep by itself
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before


def test_an_exit_in_a_reward_does_not_end_the_run_silently():
    with pytest.raises(SystemExit):
        Guarded(ByText(), timeout_s=5)(batch_of(["exit"], [{"prompt": "p"}]))


def test_without_a_guard_nothing_changes():
    with pytest.raises(KeyError):
        ByText()(batch_of(["raise"], [{"prompt": "p"}]))
    with pytest.raises(ConfigError, match="is nan for 1 of 1"):
        ByText()(batch_of(["nan"], [{"prompt": "p"}]))
    batch = batch_of(["good"], [{"prompt": "p"}])
    ByText()(batch)
    assert batch.failures == {}


def test_what_does_not_apply_is_no_failure():
    batch = batch_of(["good", "raise"], [{"prompt": "p"}])
    inner = FunctionReward(lambda completions: [None if c == "good" else 1 / 0 for c in completions], name="mine")
    assert Guarded(inner)(batch).isnan().all() and batch.failures["mine"].tolist() == [0, 1]


def test_a_failed_reward_voids_the_sum_and_one_that_abstains_does_not():
    first, second = ByText(name="first"), ByText(name="second")
    scores = {"first": torch.tensor([1.0, math.nan, math.nan]), "second": torch.tensor([2.0, 2.0, 2.0])}
    failures = {"first": torch.tensor([0, 1, 0])}
    total = total_reward([first, second], scores, failures)
    assert total[0] == 3 and total[1].isnan() and total[2] == 2


def test_failures_travel_with_their_completions():
    parts = [
        batch_of(texts, ROWS) for texts in (["good", "raise", "good", "good"], ["raise", "raise", "good", "raise"])
    ]
    for part in parts:
        part.rewards = {"mine": Guarded(ByText(name="mine"))(part)}
    whole = RolloutBatch.concatenate(parts)
    assert whole.failures["mine"].tolist() == [0, 1, 0, 0, 1, 1, 0, 1]
    assert whole.take([3, 0]).failures["mine"].tolist() == [0, 1, 0, 1]


def test_one_family_of_a_mixture_may_fail():
    mixture = PerTask({"a": Guarded(ByText(), max_failure_rate=0.2), "b": ExactAnswer()}, scales={"a": 3.0})
    batch = mixed(["good", "raise", "good", "bad"], ["a", "b"], ["-", "good"])
    assert mixture(mixed(["good", "good"], ["a"], ["-"])).tolist() == [3, 3]
    values = mixture(batch)
    assert values[[0, 2, 3]].tolist() == [3, 1, 0] and values[1].isnan()
    assert batch.failures["per_task"].tolist() == [0, 1, 0, 0] and mixture.max_failure_rate == 0.2
    assert "no such thing" in mixture.last_failure


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="timeout_s is 0"):
        Guarded(ByText(), timeout_s=0)
    with pytest.raises(ConfigError, match="max_failure_rate is 2"):
        Guarded(ByText(), max_failure_rate=2)
    with pytest.raises(ConfigError, match="counts its failures itself"):
        Guarded(HTTPJudge("http://localhost"))
    with pytest.raises(ConfigError, match="must begin with http"):
        HTTPJudge("file:///etc/passwd")
    with pytest.raises(ConfigError, match="'NO_SUCH_TOKEN' of token_variable is not set"):
        HTTPJudge("http://localhost", token_variable="NO_SUCH_TOKEN")
    with pytest.raises(ConfigError, match="sends the data column 'gold'"):
        HTTPJudge("http://localhost", columns=["gold"]).check_columns({"prompt": "p"})


# ---- a judge over HTTP -----------------------------------------------------------------------------------------------


@contextmanager
def served(answer):
    """A local server; `answer(handler, question)` writes the response. Yields (url, questions)."""
    questions = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            questions.append((body, dict(self.headers)))
            try:
                answer(self, body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the judge did not wait

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/score", questions
    finally:
        server.shutdown()
        server.server_close()


def say(handler, text, status=200):
    body = text if isinstance(text, bytes) else text.encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def by_length(handler, question):
    say(handler, json.dumps({"scores": [len(text) for text in question["completions"]]}))


def asked(url, texts=("a", "bb", "ccc", "dddd"), **options):
    options = {"timeout_s": 0.4, "retries": 0, "backoff_s": 0.01} | options
    judge, batch = HTTPJudge(url, **options), batch_of(list(texts), ROWS)
    return judge(batch), batch.failures["http_judge"].tolist(), judge.last_failure


def test_a_judge_gets_the_texts_and_the_columns_in_their_order(monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    with served(by_length) as (url, questions):
        values, failures, _ = asked(
            url, columns=["answer"], per_request=3, workers=1, token_variable="JUDGE_TOKEN", timeout_s=5
        )
    assert values.tolist() == [1, 2, 3, 4] and failures == [0] * 4
    first, second = questions
    assert first[0] == {"prompts": ["p", "p", "q"], "completions": ["a", "bb", "ccc"], "answer": ["x", "x", "y"]}
    assert second[0] == {"prompts": ["q"], "completions": ["dddd"], "answer": ["y"]}
    assert first[1]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (lambda h, q: say(h, "not json"), 1, "JSONDecodeError"),
        (lambda h, q: say(h, b"\xff\xfe\x00"), 1, "Error"),
        (lambda h, q: say(h, ""), 1, "JSONDecodeError"),
        (lambda h, q: say(h, '{"scores": [1]}'), 1, "expected a list of 4 scores"),
        (lambda h, q: say(h, '{"score": 1}'), 1, "expected a list of 4 scores"),
        (lambda h, q: say(h, "[" * 100_000), 1, "RecursionError|JSONDecodeError"),
        (lambda h, q: say(h, "7"), 1, "expected a list of 4 scores, got '7'"),
        (lambda h, q: say(h, "overloaded", 503), 1, "status 503: overloaded"),
        (lambda h, q: say(h, "who are you", 401), 1, "status 401: who are you"),
        (lambda h, q: (h.send_response(302), h.send_header("Location", "/other"), h.end_headers()), 1, "status 302"),
        (lambda h, q: h.wfile.write(b"nonsense\r\n\r\n"), 1, "BadStatusLine|RemoteDisconnected|IncompleteRead"),
        (lambda h, q: h.connection.close(), 1, "RemoteDisconnected|ConnectionReset|no connection"),
        (lambda h, q: say(h, b" " * (2 << 20) + b"[1, 1, 1, 1]"), 1, "longer than 1048576 bytes"),
        (lambda h, q: time.sleep(1), 2, "no answer within 0.4 s"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none(answer, kind, message):
    with served(answer) as (url, _):
        values, failures, said = asked(url)
    assert values.isnan().all() and failures == [kind] * 4
    assert re.search(message, said) and url in said


def test_an_answer_that_drips_is_late():
    def drip(handler, question):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(30):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    started = time.monotonic()
    with served(drip) as (url, _):
        values, failures, _ = asked(url)
    assert failures == [2] * 4 and time.monotonic() - started < 2.5


def test_single_scores_that_are_no_numbers():
    with served(lambda h, q: say(h, '[1, NaN, "2", true]')) as (url, _):
        values, failures, _ = asked(url, timeout_s=5)
    assert values[0] == 1 and failures == [0, 1, 1, 1]
    with served(lambda h, q: say(h, "[1, null, Infinity, 1e999]")) as (url, _):
        assert asked(url, timeout_s=5)[1] == [0, 1, 1, 1]


def test_nobody_there():
    with served(by_length) as (url, _):
        pass
    values, failures, said = asked(url)
    assert values.isnan().all() and failures == [1] * 4 and "refused" in said


@pytest.mark.parametrize(("status", "tries"), [(503, 3), (429, 3), (400, 1)])
def test_what_can_mend_itself_is_tried_again(status, tries):
    with served(lambda h, q: say(h, "later", status)) as (url, questions):
        asked(url, retries=2, timeout_s=5)
        assert len(questions) == tries


def test_a_second_try_may_succeed():
    seen = []

    def once(handler, question):
        seen.append(1)
        say(handler, "later", 503) if len(seen) == 1 else by_length(handler, question)

    with served(once) as (url, _):
        values, failures, _ = asked(url, retries=1, timeout_s=5)
    assert values.tolist() == [1, 2, 3, 4] and failures == [0] * 4


# ---- in a run --------------------------------------------------------------------------------------------------------


class FailsFor(Reward):
    """Raises for chosen calls, counted over the run."""

    def __init__(self, fails, name):
        super().__init__(name=name)
        self.fails, self.calls = fails, 0

    def score(self, batch):
        scores = []
        for text in batch.completions:
            self.calls += 1
            if self.fails(self.calls):
                raise RuntimeError(f"judge is ill at call {self.calls}")
            scores.append(float(len(text) % 3))
        return scores


class Keeps(L.Callback):
    def __init__(self):
        self.metrics, self.batches = [], []

    def on_train_batch_end(self, trainer, module, *arguments):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.batches.append(module.last_rollout)


def trained(reasoner, folder, rewards, steps=3, micro=None, val=0, **parts):
    module = build(
        reasoner,
        rewards,
        batch=BatchPlan(prompts_per_rollout=2, group_size=4, rollout_micro_batch=micro),
        sampling=SamplingParams(max_new_tokens=6),
        **parts,
    )
    keeps, data = Keeps(), sums((1,), train_size=8, val_size=2, seed=0)
    validation = {"limit_val_batches": val, "val_check_interval": 1, "check_val_every_n_epoch": None}
    try:
        fit(module, steps, [keeps], data=data, folder=folder, **validation)
    finally:
        keeps.rows = data
    return keeps


@pytest.mark.parametrize("normalise", [False, True])
def test_a_run_goes_on_without_the_failed_completions(reasoner, tmp_path, normalise):
    """Every eighth call fails: one completion per rollout. A second reward's score must not earn it an advantage."""
    judge = Guarded(FailsFor(lambda n: n % 8 == 3, "judge"), max_failure_rate=0.2)
    other = FunctionReward(lambda completions: [float(i) for i in range(len(completions))], name="other")
    kept = trained(reasoner, tmp_path, [judge, other], shaping=Shaping(normalise_rewards=normalise))
    assert len(kept.metrics) == 3
    for metrics, batch in zip(kept.metrics, kept.batches, strict=True):
        assert metrics["train/reward/error_rate"] == 1 / 8 and metrics["train/reward/timeout_rate"] == 0
        assert math.isfinite(metrics["train/loss"]) and math.isfinite(metrics["train/reward"])
        assert batch.failures["judge"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
        advantages = batch.advantages if batch.advantages.dim() == 1 else batch.advantages[:, 0]
        assert advantages[2] == 0 and advantages.isfinite().all() and advantages[[0, 1, 3]].abs().sum() > 0


def test_a_run_with_too_many_failures_stops_and_says_why(reasoner, tmp_path):
    judge = Guarded(FailsFor(lambda n: n > 8 and n % 2 == 0, "judge"), max_failure_rate=0.4)
    with pytest.raises(
        ConfigError,
        match=r"'judge' \(Guarded\) failed for 50% of the 8 completions of this rollout "
        r"\(4 errors, 0 time-outs\).*40%.*judge is ill at call 16",
    ):
        trained(reasoner, tmp_path, [judge])
    assert judge.reward.calls == 16  # the second rollout


class ByLength(Reward):
    """A judge that is down from a call on, and otherwise depends on the text alone."""

    def __init__(self, down_from=10**9):
        super().__init__(name="judge")
        self.down_from, self.calls = down_from, 0

    def score(self, batch):
        self.calls += 1
        if self.calls >= self.down_from:
            raise ConnectionError("down")
        return [float(sum(map(ord, text)) % 5) for text in batch.completions]


def test_a_stopped_run_goes_on_from_its_checkpoint_when_the_judge_is_back(reasoner, tmp_path):
    def run(judge, folder, steps=4, ckpt_path=None):
        module = build(reasoner, [Guarded(judge)], batch=BatchPlan(2, 4), sampling=SamplingParams(max_new_tokens=6))
        saved = RolloutCheckpoint(every_n_rollouts=1, folder=str(folder))
        fit(module, steps, [saved], data=sums((1,), train_size=16, val_size=2, seed=0), seed=3, ckpt_path=ckpt_path)
        return weights(module)

    whole = run(ByLength(), tmp_path / "whole")
    with pytest.raises(ConfigError, match="'judge'.* failed for 88% .* ConnectionError: down"):
        run(ByLength(down_from=18), tmp_path / "stopped")  # one of the third rollout's eight calls is answered
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == [
        "rollout_000001.ckpt",
        "rollout_000002.ckpt",
    ]
    assert torch.equal(
        run(ByLength(), tmp_path / "again", ckpt_path=str(tmp_path / "stopped/rollout_000002.ckpt")), whole
    )


def test_a_judge_that_is_down_is_seen_in_the_validation(reasoner, tmp_path):
    judge = Guarded(FailsFor(lambda n: n > 8, "judge"), max_failure_rate=0.4)
    with pytest.raises(ConfigError, match="failed for 100% of the 2 completions of the validation"):
        trained(reasoner, tmp_path, [judge], val=1)


def test_rewards_that_wait_fail_in_their_threads(reasoner, tmp_path):
    def one_fails(handler, question):
        say(handler, json.dumps([None if i == 1 else 1.0 for i in range(len(question["completions"]))]))

    with served(one_fails) as (url, questions):
        kept = trained(reasoner, tmp_path, [HTTPJudge(url, per_request=8, max_failure_rate=0.5)], steps=2, micro=4)
        assert len(questions) == 4  # two parts of four completions in each rollout
    assert kept.batches[0].failures["http_judge"].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    assert kept.metrics[0]["train/reward/error_rate"] == 1 / 4


def test_a_cost_that_may_fail_is_refused():
    with pytest.raises(ConfigError, match="model.cost is HTTPJudge, which may fail"):
        HCRLHF(
            PolicyParams("none"),
            rewards=[ByText()],
            cost=HTTPJudge("http://localhost"),
            constraint=Constraint(cost_scale="raw"),
        )


def test_a_failure_without_a_limit_is_a_fault_of_the_reward():
    class Confused(Reward):
        def score(self, batch):
            return [Failure("error", "x") for _ in batch.completions]

    with pytest.raises(ConfigError, match="'confused'.*returned a Failure"):
        Confused()(batch_of(["a"], [{"prompt": "p"}]))
