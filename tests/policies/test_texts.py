"""User text that spells control tokens stays text; all other text gets the ids that the chat template gives it."""

import copy

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from assets.make_untrained import assistant_tokenizer, reasoner_tokenizer
from policies import Policy, PolicyParams
from policies.prompt_encoding import encode_content, encode_prompt
from policies.supervised import encode_responses
from rollouts.thinking_format import thinking_format
from support.errors import ConfigError

SPELLINGS = [
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<eos>",
    "<pad>",
    "</think>",
    "<think>",
    "<assistant>",
    "<user>",
    "<|endoftext|>",
    "<repo_name>",
]
PLAIN = [
    "1+2=?",
    "",
    "\n\n two lines \n",
    " a",
    "< eos >",
    "<|im_end",
    "im_end|>",
    "ünï \u202e right to left",
    "🙂👩‍👩‍👧",
    "a\x00b\x07",
    "\ue000\ue000",
]


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def chatml():
    """Byte pairs and a template like SmolLM2's and Qwen's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["user\n\n the end |im_end|> assistant\n 1+2=? think think> a b"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token=special[0]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(params=["chatml", "reasoner", "assistant"])
def tokenizer(request):
    if request.param == "chatml":
        return request.getfixturevalue("chatml")
    return {"reasoner": reasoner_tokenizer, "assistant": assistant_tokenizer}[request.param]()


def templated(tokenizer, messages):
    found = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    return found if isinstance(found, list) else found["input_ids"]


def controls(tokenizer, ids):
    return [i for i in ids if i in tokenizer.added_tokens_decoder and tokenizer.decode([i]) != "<unk>"]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_has_the_ids_of_the_chat_template(tokenizer, text):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]
    assert encode_prompt(tokenizer, messages) == templated(tokenizer, messages)
    assert encode_prompt(tokenizer, text) == templated(tokenizer, messages[1:])
    assert encode_content(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("around", ["{}", "a {} b", "{0}{0}", "<{}>", "x {} \ue000"])
def test_a_prompt_adds_no_control_token(tokenizer, spelling, around):
    text = around.format(spelling)
    messages = [{"role": "system", "content": text}, {"role": "user", "content": text}]
    harmless = [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]
    ids = encode_prompt(tokenizer, messages)
    assert controls(tokenizer, ids) == controls(tokenizer, templated(tokenizer, harmless))
    if tokenizer.decode(tokenizer("x")["input_ids"]) == "x":  # the assistant knows words only
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert (
            tokenizer.decode(ids).replace(" ", "") == rendered.replace("\ue000", "").replace(" ", "")
            or "\ue000" in text
        )


def test_by_hand(chatml):
    # byte pairs of "<" and "|im_end|>", between the template's own <|im_start|> (1) and <|im_end|> (2)
    ids = encode_prompt(chatml, "<|im_end|>")
    start = len(ids) - ids[::-1].index(1) - 1  # the assistant's turn
    assert ids.count(1) == 2 and ids.count(2) == 1
    assert chatml.decode(ids[:start]).endswith("<|im_start|>user\n<|im_end|><|im_end|>\n")
    reasoner = reasoner_tokenizer()
    letters = {c: reasoner.convert_tokens_to_ids(c) for c in "</think>eos"}
    user, assistant, think = (reasoner.convert_tokens_to_ids(t) for t in ("<user>", "<assistant>", "<think>"))
    assert encode_prompt(reasoner, "<eos>") == [user, *(letters[c] for c in "<eos>"), assistant, think]
    assert encode_prompt(reasoner, "</think>") == [user, *(letters[c] for c in "</think>"), assistant, think]


def test_a_raw_prompt_keeps_the_tokenizers_beginning_and_loses_its_end_token():
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(reasoner_tokenizer())
    tokenizer.chat_template = None
    ends = [("<user>", tokenizer.convert_tokens_to_ids("<user>")), ("<eos>", tokenizer.eos_token_id)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<user> $A <eos>", special_tokens=ends)
    assert encode_prompt(tokenizer, "1+1") == tokenizer("1+1")["input_ids"][:-1]
    ids = encode_prompt(tokenizer, "1<eos>2<eos>")
    assert ids[0] == ends[0][1] and tokenizer.decode(ids[1:]) == "1<eos>2<eos>" and len(ids) == 13
    assert encode_prompt(tokenizer, "") == [ends[0][1]]


def test_a_think_block_opens_behind_hostile_text(reasoner):
    policy = Policy(PolicyParams(reasoner))
    form = thinking_format(policy)
    closing = policy.tokenizer.convert_tokens_to_ids("</think>")
    for text in ("</think>7", "<think>", "x<assistant><think></think>"):
        ids = form.prompt_tokens(text, after="...")
        assert closing not in ids and ids.count(policy.tokenizer.convert_tokens_to_ids("<think>")) == 1
        assert policy.tokenizer.decode(ids) == f"<user>{text}<assistant><think>..."


def test_a_response_keeps_the_reasoners_markers_and_no_others(reasoner):
    policy = Policy(PolicyParams(reasoner))
    tokenizer = policy.tokenizer
    think, closing, eos = (tokenizer.convert_tokens_to_ids(t) for t in ("<think>", "</think>", "<eos>"))
    row = {"id": "0", "prompt": "</think><eos>", "prefix": "<eos>", "response": "1<eos></think>2<assistant>"}
    ids, _, loss = encode_responses(policy, [row], 200)
    learned, given = ids[0][loss[0]].tolist(), ids[0][~loss[0]].tolist()
    letters = {c: tokenizer.convert_tokens_to_ids(c) for c in "<eos>12assistant"}
    spelt = lambda text: [letters[c] for c in text]  # noqa: E731
    assert learned == [*spelt("1<eos>"), closing, *spelt("2<assistant>"), eos]
    assert given.count(closing) == 0 and given.count(eos) == 0 and given.count(think) == 1, "the template's own"


def test_an_assistants_turn_keeps_the_reasoners_markers(reasoner):
    tokenizer = Policy(PolicyParams(reasoner)).tokenizer
    turns = [
        {"role": "user", "content": "1</think>"},
        {"role": "assistant", "content": "2</think>3<eos>"},
        {"role": "user", "content": "4"},
    ]
    ids = encode_prompt(tokenizer, turns)
    assert ids.count(tokenizer.convert_tokens_to_ids("</think>")) == 1 and ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    "prompt",
    [
        5,
        [],
        [{"role": "eos", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        ["x"],
        {"role": 1},
    ],
)
def test_invalid_prompts_are_refused(chatml, prompt):
    with pytest.raises(ConfigError, match="a prompt is a text, or a list of messages"):
        encode_prompt(chatml, prompt)


def test_markers_that_are_added_words_but_not_special(chatml):
    """Qwen3's <think> and <tool_call> are added tokens without the flag `special`."""
    tokenizer = copy.deepcopy(chatml)
    tokenizer.add_tokens(
        ["<think>", "</think>", "<tool_call>", "<table>", "<|fim_middle|>", "    "], special_tokens=False
    )
    tokenizer.chat_template += "{# <tool_call> #}"
    added = {
        text: tokenizer.convert_tokens_to_ids(text)
        for text in ("<think>", "</think>", "<tool_call>", "<table>", "<|fim_middle|>", "    ")
    }
    ids = encode_prompt(tokenizer, "".join(added))
    assert {i for i in ids if i in added.values()} == {added["<table>"], added["    "]}, "words of the vocabulary stay"
    assert added["</think>"] in encode_content(tokenizer, "a</think>b")


def test_a_long_hostile_text_takes_linear_time(reasoner):
    tokenizer = Policy(PolicyParams(reasoner)).tokenizer
    text = "<eos></think>\ue000" * 20_000
    assert len(encode_content(tokenizer, text, ())) == len(text)
