"""Modes on hand-made completions under several chat templates, and what a template means for the prompt."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from assets.make_untrained import assistant_tokenizer, reasoner_tokenizer
from policies import Policy, PolicyParams
from rollouts import Mode, RolloutBatch, needs_thinking, thinking_format
from support.errors import ConfigError
from tests.conftest import save_tiny

# The behaviour of three families' templates, not their text.
R1 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + "
    "(m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content']) }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)


def characters(template, whole_markers=True):
    """One token per character; <think> and </think> are tokens of their own or spelt out."""
    special = ["<pad>", "<eos>", *(["<think>", "</think>"] if whole_markers else [])]
    letters = [chr(c) for c in range(32, 127)] + ["\n"]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(special + letters)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )
    fast.chat_template = template
    return fast


TOKENIZERS = {
    "embedded": reasoner_tokenizer,
    "r1": lambda: characters(R1),
    "qwen3": lambda: characters(QWEN3),
    "spelt out": lambda: characters(R1, whole_markers=False),
}


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def thinker(request, tmp_path_factory):
    return Policy(PolicyParams(save_tiny(tmp_path_factory.mktemp("thinker"), TOKENIZERS[request.param]())))


def batch_of(policy, prompt_ids, texts):
    rows = [
        policy.tokenizer(text, add_special_tokens=False)["input_ids"] + [policy.tokenizer.eos_token_id]
        for text in texts
    ]
    width = max(map(len, rows))
    ids = torch.tensor([row + [policy.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    prompt = torch.tensor([prompt_ids])
    zeros = torch.zeros(ids.shape)
    return RolloutBatch(
        prompt, torch.ones_like(prompt).bool(), ids, mask, mask, zeros, ["eos"] * len(rows), [{}], decoder=policy.decode
    )


CASES = {
    "1+2+0=3</think>3": (Mode.THINKING, True),
    "</think>3": (Mode.NO_THINKING, True),
    " \n\n</think>\n\n3": (Mode.NO_THINKING, True),
    ".</think>3": (Mode.THINKING, True),
    "1+2+0=3": (Mode.UNCLOSED, False),
    "": (Mode.UNCLOSED, False),
    "</think><think>1+2</think>3": (Mode.THINKING, False),  # reasoning in a second block
    "</think><think>1+2": (Mode.UNCLOSED, False),
    "</think>3</think>": (Mode.NO_THINKING, False),
    "1+2</think>3</think>4": (Mode.THINKING, False),
    "the </thinker> thinks": (Mode.UNCLOSED, False),
}


def test_modes_in_an_open_block(thinker):
    form = thinking_format(thinker)
    batch = batch_of(thinker, form.prompt_tokens("1+2=?"), list(CASES))
    assert batch.opened == [True] * len(CASES)
    assert [Mode(m) for m in form.modes(batch).tolist()] == [mode for mode, _ in CASES.values()]
    assert form.well_formed(batch).tolist() == [well for _, well in CASES.values()]


@pytest.mark.parametrize("ellipsis", ["\n...\n", "\n"])
def test_the_ellipsis_stands_once_behind_the_open_block(thinker, ellipsis):
    form = thinking_format(thinker)
    ids = form.prompt_tokens("1+2=?", after=ellipsis)
    text = thinker.decode(torch.tensor([ids]), torch.ones(1, len(ids)).bool())[0]
    assert text.endswith("<think>" + ellipsis) and text.count("<think>") == 1
    batch = batch_of(thinker, ids, ["</think>3", "1+2</think>3", "1+2"])
    assert form.modes(batch).tolist() == [Mode.NO_THINKING, Mode.THINKING, Mode.UNCLOSED]


def test_where_the_prompt_opens_no_block(tmp_path):
    """Qwen3 opens its block itself; with enable_thinking=False the prompt closes it."""
    policy = Policy(PolicyParams(save_tiny(tmp_path, characters(QWEN3))))
    form = thinking_format(policy)
    texts = ["<think>\n1+2</think>3", "<think>\n\n</think>\n\n3", "<think>1+2", "3"]
    for prompt in ("1+2=?", "what does <think> mean?"):
        batch = batch_of(policy, policy.encode(prompt), texts)
        assert batch.opened == [False] * 4
        assert form.modes(batch).tolist() == [Mode.THINKING, Mode.NO_THINKING, Mode.UNCLOSED, Mode.NO_THINKING]
        assert form.well_formed(batch).tolist() == [True, True, False, False]
    closed = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2=?"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    batch = batch_of(policy, policy.tokenizer(closed, add_special_tokens=False)["input_ids"], ["3"])
    assert form.modes(batch).tolist() == [Mode.NO_THINKING]


def test_a_turn_that_the_prompt_begins_is_continued_only_in_an_open_block(thinker):
    """A block behind a prefill would neither continue it nor be at the turn's beginning."""
    form, user = thinking_format(thinker), {"role": "user", "content": "1+2=?"}
    for begun in ("3", "<think>so</think>", "<think>so", "</think>", " "):
        with pytest.raises(ConfigError, match="begins the assistant's turn with|chat template refuses"):
            form.prompt_tokens([user, {"role": "assistant", "content": begun}])
    earlier = [user, {"role": "assistant", "content": "3"}, user]
    for prompt in (earlier, [*earlier, {"role": "assistant", "content": ""}]):
        text = thinker.tokenizer.decode(form.prompt_tokens(prompt))
        assert text.rstrip().endswith("<think>")


def test_a_template_that_closes_the_block_is_refused(tmp_path):
    folder = save_tiny(tmp_path, characters(QWEN3))
    for value in (True, False):
        policy = Policy(PolicyParams(folder, chat_template_args={"enable_thinking": value}))
        if value:
            assert needs_thinking(policy, "AdaptThink")
        else:
            with pytest.raises(ConfigError, match="AdaptThink decides by itself .*closes the think block"):
                needs_thinking(policy, "AdaptThink")


def test_a_model_without_a_think_block_is_refused_with_a_mend(tmp_path):
    policy = Policy(PolicyParams(save_tiny(tmp_path, assistant_tokenizer())))
    assert thinking_format(policy) is None
    with pytest.raises(ConfigError, match="open_thinking: true"):
        needs_thinking(policy, "AdaptThink")


def test_open_thinking_makes_a_template_open_its_block(tmp_path):
    folder = save_tiny(tmp_path / "plain", assistant_tokenizer())
    policy = Policy(PolicyParams(folder, open_thinking=True))
    assert thinking_format(policy).opens_itself
    policy.save(tmp_path / "saved")
    for params in (PolicyParams(str(tmp_path / "saved")), PolicyParams(str(tmp_path / "saved"), open_thinking=True)):
        tokenizer = Policy(params).tokenizer
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
        )
        assert text.endswith("<think>") and text.count("<think>") == 1
