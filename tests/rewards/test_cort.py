"""CoRT: code that failed, hints inserted into completions, and what of them is learned."""

import json

import pytest
import torch

from assets.rejection_sample import Cues, main, sampled
from datamodules import ArithmeticPrompts, Demonstrations
from environments import CallLimits, CodeFence, JSONCalls, PythonTool, ToolEnvironment
from environments.tools import is_failure
from policies import Policy, PolicyParams
from policies.supervised import encode_responses, encode_turns
from rewards import CodeFailures, Format
from rollouts import SamplingParams, Turns
from support.errors import ConfigError
from support.prompt_identity import check_response
from tests.helpers import ROOT
from tests.helpers.batches import batch_of_texts
from tests.helpers.talks import Chat

CODER = str(ROOT / "assets/tiny_coder")


@pytest.mark.parametrize(
    ("output", "fails"),
    [
        ("", True), (" \n", True), ("Done", True), ("[]", True), ("done\n", True),
        ("ValueError: no", True), ("an exception", True), ("Traceback (most recent call last)", True),
        ("0", False), ("[1]", False), ("Done: 3", False), ("None", False),
    ],
)  # fmt: skip
def test_what_counts_as_a_failure(output, fails):
    assert is_failure(output) is fails


def counted(calls, failed):
    batch = batch_of_texts(["x"] * len(calls))
    values = {"calls": torch.tensor(calls), "failed_outputs": torch.tensor(failed)}
    empty = torch.zeros(len(calls), 1)
    batch.turns = Turns(empty.long(), empty, [["eos"]] * len(calls), values, empty[:, 0].long())
    return batch


def test_code_costs_only_where_all_of_it_failed():
    batch = counted([0.0, 1, 1, 3, 3], [0.0, 0, 1, 2, 3])
    assert CodeFailures()(batch).tolist() == [0, 0, -1, 0, -1] and CodeFailures().weight == 0.1
    assert CodeFailures(without_code=-1)(batch).tolist() == [-1, 0, -1, 0, -1]
    metrics = CodeFailures().metrics(batch)
    assert metrics["call_rate"] == pytest.approx(0.8)
    assert metrics["call_success"] == pytest.approx((1 + 0 + 1 / 3 + 0) / 4)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="without_code is 1"):
        CodeFailures(without_code=1)
    with pytest.raises(ConfigError, match="CodeFailures.* come without one"):
        CodeFailures()(batch_of_texts(["1"]))
    batch = counted([1.0], [0.0])
    batch.turns.values.clear()
    with pytest.raises(ConfigError, match="use it as model.environment"):
        CodeFailures()(batch)
    with pytest.raises(ConfigError, match="cues.onset is 'a' and cues.at_onset ''"):
        Cues(onset="a")
    with pytest.raises(ConfigError, match="is not a regular expression"):
        Cues(onset="(", at_onset="x")


def tools(**options):
    return ToolEnvironment([PythonTool()], CodeFence(**options), CallLimits(max_calls=2), notice="")


def test_cues_are_inserted_where_work_by_hand_begins_and_behind_outputs():
    policy = Policy(PolicyParams(CODER))
    rows = [{"id": str(n), "prompt": f"{n}+{n + 1}=?", "answer": str(2 * n + 1)} for n in (12345, 45678, 70707)]
    torch.manual_seed(0)
    cues = Cues(onset=r"\d\+\d\+\d=", at_onset="Too long, so Python.\n")
    with torch.no_grad():
        batch = sampled(policy, rows, 2, SamplingParams(120), tools(cue="That is right. "), cues)
    assert any(text.startswith("Too long, so Python.\n") for text in batch.completions)
    for text in batch.completions:
        assert text.startswith("Too long, so Python.\n") or "```python" in text.split("```output")[0]
        assert text.count("```output") == text.count("```\nThat is right. "), "behind every output"


def test_kept_conversations_are_demonstrations_in_which_outputs_are_not_learned(tmp_path, capsys):
    out = tmp_path / "kept.jsonl"
    data = ArithmeticPrompts(levels=[3, 4], train_size=10, val_size=2, seed=1)
    cues = Cues(onset=r"\d\+\d\+\d=", at_onset="Too long, so Python.\n```python\n12+34")
    rewards = [Format(r"[\s\S]*```output[\s\S]*</think>[\s\S]*")]
    environment = tools(cue="That is right. ")
    main(
        CODER, data, rewards, str(out), SamplingParams(160), samples=2, per_prompt=1, batch=10,
        environment=environment, cues=cues,
    )  # fmt: skip
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows and "kept" in capsys.readouterr().out
    policy = Policy(PolicyParams(CODER))
    for row in rows:
        roles = [turn["role"] for turn in row["response"]]
        assert roles[0] == roles[-1] == "assistant" and "output" in roles
        ids, _, learned = encode_responses(policy, [row], 400)
        text = policy.tokenizer.decode(ids[0][learned[0]])
        assert "```output" not in text and "```python" in text
        assert text.count("That is right. ") == roles.count("output"), "cues are learned"
    source = Demonstrations(str(out), batch_size=2, val_size=1)
    source.setup("fit")
    assert len(source.train_data) == len(rows) - 1


def test_an_environment_that_speaks_in_messages_is_refused(reasoner, tmp_path):
    data = ArithmeticPrompts(levels=[1], train_size=2, val_size=2, seed=1)
    with pytest.raises(ConfigError, match="Chat replied with messages, which are not kept"):
        main(reasoner, data, [Format(r"[\s\S]*")], str(tmp_path / "x.jsonl"), SamplingParams(60), environment=Chat())
    assert JSONCalls().stop == ()


ASSISTANT, OUTPUT, USER = ({"role": role, "content": "1"} for role in ("assistant", "output", "user"))


@pytest.mark.parametrize(
    "response",
    [
        3, None, [], ["1"], [OUTPUT, ASSISTANT], [ASSISTANT, USER], [ASSISTANT, USER, OUTPUT, ASSISTANT],
        [ASSISTANT, {"role": "system", "content": "1"}, ASSISTANT], [ASSISTANT, {"role": ["user"]}, ASSISTANT],
        [{"role": "assistant", "content": None}],
    ],
)  # fmt: skip
def test_a_response_of_another_form_is_named(response, reasoner):
    with pytest.raises(ConfigError, match="row 7 has .* as its response"):
        check_response(response, "row 7")


def test_turns_of_a_response_by_hand(reasoner):
    policy = Policy(PolicyParams(reasoner))

    def encoded(*turns):
        ids, learned = encode_turns(policy, [*turns], "row 1")
        return policy.tokenizer.convert_ids_to_tokens(ids), [int(one) for one in learned]

    assert encoded(ASSISTANT) == (["1", "<eos>"], [1, 1])
    assert encoded(ASSISTANT, OUTPUT, ASSISTANT) == (["1", "1", "1", "<eos>"], [1, 0, 1, 1])
    asked = ["1", "<eos>", "<user>", "1", "<assistant>", "<think>", "1", "<eos>"]
    assert encoded(ASSISTANT, USER, ASSISTANT) == (asked, [1, 1, 0, 0, 0, 0, 1, 1])
    assert encoded(ASSISTANT | {"learned": False}, USER, ASSISTANT) == (asked, [0, 0, 0, 0, 0, 0, 1, 1])
