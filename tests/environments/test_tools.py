"""Tools: what a model may write and what a tool may do, each of which has a text, a metric or a message."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from environments import (
    CallLimits,
    CodeFence,
    Conversation,
    JSONCalls,
    PythonTool,
    Tool,
    ToolEnvironment,
    ToolError,
    Turn,
    tool_environment,
)
from environments.call_formats import last_block
from environments.tools import clipped
from policies import Policy, PolicyParams
from rewards.sandbox import Limits
from rollouts import EmbeddedEngine, SamplingParams
from rollouts.continuous_batching import ContinuousBatching
from support.errors import ConfigError
from support.identity import identity
from support.seeding import isolated_rng


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


def anything(what: str):
    """Do what a test asks for.

    Args:
        what: one of the things below.
    """
    if what == "sleep":
        time.sleep(0.5)
    if what == "exit":
        raise SystemExit(3)
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "unprintable":
        raise Unprintable
    return {
        "none": None, "blank": " \n", "flood": "x" * 5_000_000, "surrogate": "a\ud800b", "list": [1, {"b": 2}],
        "object": object, "control": "<eos></think>", "loop": LOOP,
    }.get(what, what)  # fmt: skip


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


LOOP: list = []
LOOP.append(LOOP)


def spoken(*texts, finish="eos", state=None):
    return Conversation(
        {"id": 1}, 0, 1000, [Turn(text, len(text), finish) for text in texts], {} if state is None else state
    )


def call(name="add", **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def answered(environment, *texts, **options):
    """(contents of the messages, metrics that are not 0) of the reply to the last of these turns."""
    reply = environment.reply(spoken(*texts, **options))
    contents = None if reply.messages is None else [message["content"] for message in reply.messages]
    return contents, {name: value for name, value in reply.metrics.items() if value}


LIMITS = CallLimits(timeout_s=0.1)
TOOLS = ToolEnvironment([add, anything], limits=LIMITS)


@pytest.mark.parametrize(
    ("written", "content", "metric"),
    [
        (call(a=2, b=3), "5", None),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 1}"}</tool_call>', "2", None),
        (call(a=2), "error: wrong arguments: missing a required argument: 'b'", "call_errors"),
        (call(a=2, b=[]), "error: TypeError: unsupported operand", "call_errors"),
        (call("nothing"), "error: there is no tool 'nothing'; the tools are add, anything", "call_problems"),
        ("<tool_call>add(2, 3)</tool_call>", "error: the call is not valid JSON", "call_problems"),
        (f"<tool_call>{'[' * 100_000}</tool_call>", "error: the call is not valid JSON", "call_problems"),
        ("<tool_call>[1]</tool_call>", 'error: a call is a JSON object with a "name"', "call_problems"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', 'error: the "arguments" are', "call_problems"),
        (call("anything", what="sleep"), "error: anything took longer than 0.1 seconds", "call_timeouts"),
        (call("anything", what="exit"), "error: SystemExit: 3", "call_errors"),
        (call("anything", what="interrupt"), "error: KeyboardInterrupt", "call_errors"),
        (call("anything", what="unprintable"), "error: Unprintable: an error without a message", "call_errors"),
        (call("anything", what="loop"), "error: ValueError: Circular reference", "call_errors"),
        (call("anything", what="none"), "(no output)", "empty_outputs"),
        (call("anything", what="blank"), "(no output)", "empty_outputs"),
        (call("anything", what="surrogate"), "a?b", None),
        (call("anything", what="list"), '[1, {"b": 2}]', None),
        (call("anything", what="object"), "\"<class 'object'>\"", None),
        (call("anything", what="flood"), "x" * 400 + "\n... 4999200 characters left out ...\n", "clipped_outputs"),
    ],
)
def test_every_call_has_a_text_and_every_failure_a_metric(written, content, metric):
    contents, metrics = answered(TOOLS, written)
    assert contents[0].startswith(content) and len(contents) == 1
    fails = {} if metric in (None, "clipped_outputs") else {"failed_outputs": 1}
    assert metrics == {"calls": 1} | ({metric: 1} if metric else {}) | fails


def test_a_function_that_always_hangs_is_left_alone():
    environment = ToolEnvironment([anything], limits=CallLimits(timeout_s=0.01))
    before = json.dumps(identity(environment))
    with ThreadPoolExecutor(20) as pool:
        texts = list(pool.map(lambda _: answered(environment, call("anything", what="sleep"))[0][0], range(20)))
    assert texts.count("error: anything does not answer") == 20 - tool_environment.MAX_HANGING
    assert json.dumps(identity(environment)) == before, "what hangs is not a setting"
    time.sleep(0.7)
    assert answered(environment, call("anything", what="again"))[0] == ["again"]


def test_turns_without_a_call_end_and_those_with_several_get_all_outputs():
    assert TOOLS.reply(spoken("The answer is 5.")).ends
    assert answered(TOOLS, f"{call(a=1, b=1)} and {call(a=2, b=2)}")[0] == ["2", "4"]
    contents, metrics = answered(TOOLS, call(a=1, b=1) * 10)
    assert len(contents) == tool_environment.PER_TURN and metrics == {"calls": 8, "refused_calls": 2}
    names = [message["name"] for message in TOOLS.reply(spoken(call(a=1, b=1))).messages]
    assert names == ["add"]


def test_a_call_that_is_not_finished_ends_the_completion():
    for text in ("<tool_call>", '<tool_call>{"name"', f"{call(a=1, b=1)}<tool_call>"):
        for finish in ("eos", "length"):
            reply = TOOLS.reply(spoken(text, finish=finish))
            assert reply.ends and reply.metrics == {"unclosed_calls": 1}
    cut = TOOLS.reply(spoken(call(a=1, b=1), finish="length"))
    assert cut.ends and cut.metrics == {"refused_calls": 1}


def test_the_notice_comes_with_the_last_outputs_and_no_call_is_run_after_it():
    environment = ToolEnvironment([add], limits=CallLimits(max_calls=2), notice="That was the last call.")
    assert environment.max_turns == 3
    texts = [call(a=1, b=1)] * 3
    assert answered(environment, *texts[:1])[0] == ["2"]
    last = environment.reply(spoken(*texts[:2]))
    assert last.messages[0]["content"] == "2\nThat was the last call." and not last.stops
    refused = environment.reply(spoken(*texts))
    assert refused.ends and refused.metrics == {"refused_calls": 1}


def test_settings_that_cannot_work_are_refused():
    def bare(a):
        return a

    with pytest.raises(ConfigError, match="two tools have the name 'add'"):
        ToolEnvironment([add, add])
    with pytest.raises(ConfigError, match="two tools have the name 'python'"):
        ToolEnvironment([PythonTool(), PythonTool()])
    with pytest.raises(ConfigError, match="tools is empty"):
        ToolEnvironment([])
    with pytest.raises(ConfigError, match="the tool bare cannot be described"):
        ToolEnvironment([bare])
    with pytest.raises(ConfigError, match="the tool 3 is not a function"):
        ToolEnvironment([3])
    with pytest.raises(ConfigError, match="max_calls is 0"):
        CallLimits(max_calls=0)
    with pytest.raises(ConfigError, match="head -1"):
        CallLimits(head=-1)
    with pytest.raises(ConfigError, match="neither may be empty"):
        JSONCalls(closing="")
    with pytest.raises(ConfigError, match="name is 'a b'"):
        PythonTool(name="a b")


def test_clipping_keeps_head_and_tail():
    assert clipped("a" * 800, 400, 400) == "a" * 800
    assert clipped("a" * 400 + "b" + "c" * 400, 400, 400) == "a" * 400 + "\n... 1 characters left out ...\n" + "c" * 400
    assert clipped("abc", 1, 0) == "a\n... 2 characters left out ...\n"


# ---- code blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no code", (None, [], True)),
        ("so\n```python\nx = 1\n```\n", ("python", ["x = 1"], True)),
        ("```py\nx = 1\n\ny\n```", ("py", ["x = 1", "", "y"], True)),
        ("```python\nx = 1\n", ("python", ["x = 1"], False)),
        ("```python\nx = 1\n```\nthen more", (None, ["x = 1"], True)),
        ("```python\na\n```\n```output\n5\n```\n", ("output", ["5"], True)),
        ("```\n", ("", [], False)),
        ("```\ntext\n```\n", ("", ["text"], True)),
        ("```python\n```\n", ("python", [], True)),
        ('```python\ns = """\n```text\n"""\n```\n', ("python", ['s = """', "```text", '"""'], True)),
        ("", (None, [], True)),
    ],
)
def test_the_last_block_of_a_text(text, expected):
    assert last_block(text) == expected


FENCED = ToolEnvironment([PythonTool(Limits(wall_s=2.0))], CodeFence(), CallLimits(max_calls=20))


def test_blocks_of_one_completion_share_their_variables():
    state, texts, shown = {}, [], []
    blocks = [
        "x = 3\nprint('noise')", "x + 1", "import math, nosuch\nx = 9\n1/0", "math.floor(x + 0.5)", "y = (", "print()",
        "exit()", "x", "raise SystemExit(1)", "input()",
    ]  # fmt: skip
    for block in blocks:
        texts.append(f"\n```python\n{block}\n```\n")
        reply = FENCED.reply(spoken(*texts, finish="stop", state=state))
        shown.append(
            (reply.text, {name for name, value in reply.metrics.items() if value} - {"calls", "failed_outputs"})
        )
    empty = ("```output\n(no output)\n```\n", {"empty_outputs"})
    assert shown == [
        ("```output\nnoise\n```\n", set()),
        ("```output\n4\n```\n", set()),
        ("```output\nerror: ModuleNotFoundError: No module named 'nosuch'\n```\n", {"call_errors"}),
        ("```output\n3\n```\n", set()),
        ("```output\nerror: SyntaxError: '(' was never closed (<unknown>, line 1)\n```\n", {"call_errors"}),
        empty,
        empty,
        ("```output\n3\n```\n", set()),
        ("```output\nerror: the program ended early\n```\n", {"call_errors"}),
        ("```output\nerror: EOFError: EOF when reading a line\n```\n", {"call_errors"}),
    ]
    other = FENCED.reply(spoken("```python\nx\n```\n", finish="stop"))
    assert "NameError" in other.text, "completions share nothing"


def test_a_block_that_hangs_or_floods_is_named_and_the_next_one_runs():
    state, limits = {}, Limits(wall_s=0.5, output_kb=4)
    environment = ToolEnvironment([PythonTool(limits)], CodeFence())
    for block, text, metric in (
        ("while True: pass", "took longer than 0.5 seconds", "call_timeouts"),
        ("print('a' * 10**6)", "printed more than 4 KB", "call_errors"),
        ("print(6)", "```output\n6\n```\n", "calls"),
    ):
        reply = environment.reply(spoken(f"```python\n{block}\n```\n", finish="stop", state=state))
        assert text in reply.text and reply.metrics[metric] == 1 and len(reply.text) < 900


def test_only_a_python_block_that_ends_the_turn_is_run():
    def reply(*texts, finish="stop"):
        return FENCED.reply(spoken(*texts, finish=finish))

    assert reply("```text\nx\n```\n").text == "" and reply("so\n```\n").text == ""  # the stop text ended no call
    assert reply("```output\n5\n```\n").text == ""  # an output that the model wrote itself
    assert reply("```python\n1/0\n```\nno, wait", finish="eos").ends
    assert reply("```python\n2\n```", finish="eos").text == "\n```output\n2\n```\n"
    unclosed = reply("```python\nx = 1", finish="eos")
    assert unclosed.ends and unclosed.metrics == {"unclosed_calls": 1}
    assert reply("no code", finish="stop").ends  # a stop text of sampling.stop
    assert reply("so\n```\n", "5\n```\n").text == ""  # the block began in the turn before
    # An output block that was left open would hide the next call if it were not only the policy's text that counts.
    assert reply("```python\nprint('```x')\n```\n", "```python\n7\n```\n").text == "```output\n7\n```\n"


def test_a_tool_may_keep_a_state_of_its_own():
    class Counter(Tool):
        name = "count"

        def session(self):
            seen = []

            def count() -> int:
                seen.append(1)
                if len(seen) > 2:
                    raise ToolError("no more")
                return len(seen)

            return count

        def schema(self):
            return {"type": "function", "function": {"name": self.name, "parameters": {}}}

    environment, state = ToolEnvironment([Counter()]), {}
    texts = [answered(environment, call("count"), state=state)[0] for _ in range(3)]
    assert texts == [["1"], ["2"], ["error: no more"]]
    assert answered(environment, call("count"))[0] == ["1"]
    assert answered(environment, call("count", a=1))[1] == {"calls": 1, "call_errors": 1, "failed_outputs": 1}


# ---- with a model ---------------------------------------------------------------------------------------------------


def engine_that_begins_with(ids, monkeypatch):
    """An engine whose policy draws these tokens first, whatever its logits are."""
    draw, script = ContinuousBatching._draw, torch.tensor(ids)

    def scripted(run):
        drawn = torch.where(run.steps < len(ids), script[run.steps.clamp(max=len(ids) - 1)], draw(run))
        run.tokens[run.row, run.steps] = drawn
        return drawn

    monkeypatch.setattr(ContinuousBatching, "_draw", scripted)
    engine = EmbeddedEngine()
    engine._compared = True  # the log-probs are those of other tokens
    return engine


def test_outputs_are_in_the_completion_and_a_fence_of_the_models_own_is_its_choice(reasoner, monkeypatch):
    """The first turn is fixed, so that a model that knows no code calls the tool."""
    policy = Policy(PolicyParams(reasoner))
    written = "```output\n9\n```\n"
    code = "```python\nprint(6*7)\n```\n"

    def ids(text):
        return policy.tokenizer(text, add_special_tokens=False)["input_ids"]

    environment = ToolEnvironment(
        [PythonTool()], CodeFence(), CallLimits(max_calls=4, max_turn_tokens=30), notice="Last."
    )
    for first, turns in ((code, 2), (written, 2)):
        with isolated_rng(1), monkeypatch.context() as patch:
            engine = engine_that_begins_with(ids(first), patch)
            batch = engine.generate(policy, [ids("?")], [{"id": 1}], 2, SamplingParams(100), environment=environment)
        assert (batch.turns.counts >= turns).all()
        for row in range(2):
            output = "```output\n42\n```\n" if first == code else ""
            assert batch.completions[row].startswith(first + output)
            own = batch.completion_ids[row][batch.turns.number[row] >= 0].tolist()
            assert own[: len(ids(first))] == ids(first)
            assert batch.turns.number[row, : len(ids(first))].eq(0).all(), "what the model wrote belongs to its turn"
            fixed = batch.completion_ids[row][batch.completion_mask[row] & (batch.turns.number[row] < 0)].tolist()
            assert fixed == ids(output)
        assert batch.turns.values["calls"].tolist() == [float(first == code)] * 2


QWEN_LIKE = (
    "{% if tools %}<user>Tools:{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def described(reasoner, tmp_path):
    """A model whose chat template describes tools."""
    policy = Policy(PolicyParams(reasoner))
    policy.tokenizer.chat_template = QWEN_LIKE
    policy.save(tmp_path / "described")
    return str(tmp_path / "described")


def module_of(model, **options):
    from lightning_modules import GRPO
    from rewards import FunctionReward
    from tests.helpers import digits

    return GRPO(PolicyParams(model), [FunctionReward(digits)], environment=ToolEnvironment([add], **options))


def test_prompts_describe_the_tools_by_the_template(described, reasoner):
    module = module_of(described)
    module.configure_model()
    prompt = module.policy.tokenizer.decode(module.prompt_tokens({"prompt": "2+2=?"}))
    assert '"name": "add"' in prompt and "the first." in prompt and prompt.endswith("<user>2+2=?<assistant>")
    assert module.policy_params.chat_template_args == {}, "the settings of the user stay as they are"
    with pytest.raises(ConfigError, match="chat template's 'tools', which the template of .* does not use"):
        module_of(reasoner).configure_model()
    plain = module_of(reasoner, describe=False)
    plain.configure_model()
    assert "add" not in plain.policy.tokenizer.decode(plain.prompt_tokens({"prompt": "2+2=?"}))


def test_a_call_by_json_is_answered_by_a_message_of_the_template(described, monkeypatch):
    policy = Policy(PolicyParams(described))
    first = policy.tokenizer(call(a=20, b=22), add_special_tokens=False)["input_ids"] + [policy.tokenizer.eos_token_id]
    environment = ToolEnvironment([add], limits=CallLimits(max_calls=1, max_turn_tokens=80), notice="")
    engine = engine_that_begins_with(first, monkeypatch)
    with isolated_rng(1):
        batch = engine.generate(policy, [[5]], [{"id": 1}], 2, SamplingParams(140), environment=environment)
    for row in range(2):
        fixed = batch.completion_ids[row][batch.completion_mask[row] & (batch.turns.number[row] < 0)]
        assert policy.tokenizer.decode(fixed) == "<tool>42<assistant>"
        assert batch.messages[row][0] == batch.turn_texts[row][1]
    assert batch.turns.values["calls"].tolist() == [1.0, 1.0] and not torch.isnan(batch.behaviour_logprobs).any()
