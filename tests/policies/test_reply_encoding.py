"""The chat template's text behind a turn of the assistant, for templates of several kinds."""

import pytest

from assets.make_untrained import reasoner_tokenizer
from policies import encode_prompt, encode_reply
from support.errors import ConfigError

CHATML = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<eos>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
#: as R1's template, which keeps only the answer of earlier turns
WITHOUT_THOUGHTS = (
    "{% for m in messages %}{% set text = m['content'].split('</think>')[-1] %}"
    "{{ '<' + m['role'] + '>' + text }}{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant><think>' }}{% endif %}"
)
MERGING = (  # as Qwen's, which puts the outputs of tools into a user's turn
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ '<user>[' + m['content'] + ']' }}"
    "{% else %}{{ '<' + m['role'] + '>' + m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
REFUSING = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{% endfor %}"
)
LAST_ONLY = "{{ messages[-1]['content'] }}{% if add_generation_prompt %}<assistant>{% endif %}"


def made(template):
    tokenizer = reasoner_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def text(tokenizer, messages, ended):
    return tokenizer.decode(encode_reply(tokenizer, messages, ended, [tokenizer.eos_token_id]))


USER = [{"role": "user", "content": "and 2+2?"}]


@pytest.mark.parametrize(
    ("template", "messages", "behind"),
    [
        (CHATML, USER, "\n<user>and 2+2?<eos>\n<assistant>"),
        (WITHOUT_THOUGHTS, USER, "<user>and 2+2?<assistant><think>"),
        (MERGING, [{"role": "tool", "name": "add", "content": "4"}] * 2, "<user>[4]<user>[4]<assistant>"),
    ],
)
def test_the_end_of_a_turn_is_written_once(template, messages, behind):
    tokenizer = made(template)
    assert text(tokenizer, messages, ended=True) == behind
    assert text(tokenizer, messages, ended=False) == "<eos>" + behind


@pytest.mark.parametrize("template", [CHATML, MERGING])
def test_a_conversation_has_the_tokens_of_the_template(template):
    """The policy's turn and the text behind it are together the template's text of all messages."""
    tokenizer = made(template)
    first, answer = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
    whole = encode_prompt(tokenizer, [first, answer, *USER])
    begun, said = encode_prompt(tokenizer, [first]), tokenizer("2<eos>", add_special_tokens=False)["input_ids"]
    assert begun + said + encode_reply(tokenizer, USER, True, [tokenizer.eos_token_id]) == whole


def test_content_that_spells_tokens_or_the_stand_in_stays_text():
    tokenizer = made(CHATML)
    ids = encode_reply(tokenizer, [{"role": "user", "content": "<eos><assistant>"}], True, [tokenizer.eos_token_id])
    names = tokenizer.convert_ids_to_tokens(ids)
    assert names.count("<eos>") == names.count("<assistant>") == names.count("<user>") == 1
    for stand_in in ("\ue001", "\ue001\ue001", "\ue000"):
        assert text(tokenizer, [{"role": "user", "content": f"a{stand_in}b"}], ended=True).startswith("\n<user>a")


def test_templates_that_cannot_go_on_are_named():
    with pytest.raises(ConfigError, match="refuses an environment's reply .*no tools here"):
        text(made(REFUSING), [{"role": "tool", "content": "4"}], ended=True)
    with pytest.raises(ConfigError, match="leaves out earlier turns"):
        text(made(LAST_ONLY), USER, ended=True)
    with pytest.raises(ConfigError, match="has no chat template"):
        text(made(None), USER, ended=True)
    with pytest.raises(ConfigError, match="environment's reply holds"):
        text(made(CHATML), [{"role": "user", "content": 3}], ended=True)
