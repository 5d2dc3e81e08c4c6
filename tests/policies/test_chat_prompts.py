"""Prompts as messages: a turn that the assistant has begun, arguments of the chat template, no template."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from assets.make_untrained import reasoner_tokenizer
from policies import Policy, PolicyParams, Scorer
from policies.prompt_encoding import encode_prompt
from support.errors import ConfigError

CHATML = (
    "{% for message in messages %}<user>{{ message['role'] }}:{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and enable_thinking is false %}"
    "<think></think>{% endif %}{% endif %}"
)
QUESTION = {"role": "user", "content": "1+2=?"}


@pytest.fixture
def tokenizer():
    made = copy.deepcopy(reasoner_tokenizer())
    made.chat_template = CHATML
    return made


@pytest.fixture
def chat_model(reasoner, tmp_path):
    """A model's folder whose template knows enable_thinking."""
    folder = tmp_path / "model"
    shutil.copytree(reasoner, folder)
    made = copy.deepcopy(reasoner_tokenizer())
    made.chat_template = CHATML
    made.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("begun", ["3", "It is 3, ", "<think>1+2", "<eos>", "3 <user>"])
def test_a_turn_that_the_assistant_began_is_continued(tokenizer, begun):
    ids = encode_prompt(tokenizer, [QUESTION, {"role": "assistant", "content": begun}])
    assert tokenizer.decode(ids) == f"<user>user:1+2=?<eos><user>assistant:{begun}"
    assert ids.count(tokenizer.eos_token_id) == 1, "the last turn stays open, and its text has no control token"


def test_a_turn_that_begins_with_nothing_is_an_open_turn(tokenizer):
    empty = [QUESTION, {"role": "assistant", "content": ""}]
    assert encode_prompt(tokenizer, empty) == encode_prompt(tokenizer, [QUESTION])
    earlier = [{"role": "assistant", "content": "3"}, QUESTION]
    assert tokenizer.decode(encode_prompt(tokenizer, earlier)).endswith("<user>user:1+2=?<eos><assistant>")


def test_a_template_that_drops_the_last_turn_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match=r"refuses the prompt .*final message does not appear"):
        encode_prompt(tokenizer, [QUESTION, {"role": "assistant", "content": "because"}])


def test_messages_without_a_template_are_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"list of messages, but the tokenizer .*no chat template"):
        encode_prompt(tokenizer, [QUESTION])
    assert encode_prompt(tokenizer, "1+2=?")


def test_arguments_reach_the_chat_template(chat_model, tmp_path):
    plain = Policy(PolicyParams(chat_model))
    direct = Policy(PolicyParams(chat_model, chat_template_args={"enable_thinking": False}))
    messages = [QUESTION]
    for policy, arguments in ((plain, {}), (direct, {"enable_thinking": False})):
        expected = policy.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **arguments
        )
        assert policy.tokenizer.decode(policy.encode("1+2=?")) == expected
    assert direct.encode("1+2=?") == [*plain.encode("1+2=?"), *direct.encode("1+2=?")[-2:]]
    direct.save(tmp_path / "exported")
    assert json.loads(Path(tmp_path, "exported", "tokenizer_config.json").read_text()).get("chat_template_args") is None
    with pytest.raises(ConfigError, match="reward or cost model"):
        Scorer(PolicyParams(chat_model, chat_template_args={"enable_thinking": False}))


@pytest.mark.parametrize(
    ("argument", "message"),
    [("enable_thinkin", "does not use it"), ("tokenize", "sets itself"), ("add_generation_prompt", "sets itself")],
)
def test_arguments_without_effect_are_refused(chat_model, argument, message):
    with pytest.raises(ConfigError, match=rf"policy\.chat_template_args names '{argument}'.*{message}"):
        Policy(PolicyParams(chat_model, chat_template_args={argument: True}))
