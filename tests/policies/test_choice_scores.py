"""Labels and texts are scored as a plain forward of transformers scores them, and labels that collide are refused."""

import pytest
import torch

from policies import Policy, PolicyParams
from policies.choice_scores import continuation, label_scores, label_tokens, text_scores
from support.errors import ConfigError

ROWS = [
    {"id": "0", "prompt": "Which?\nA. 3\nB. 4\nC. 5", "labels": ["A", "B", "C"]},
    {"id": "1", "prompt": "Is it?", "labels": ["True", "False"]},
    {"id": "2", "prompt": [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "<think></think>"}],
     "labels": ["1", "2", "3", "4"]},
]  # fmt: skip


@pytest.fixture(scope="module")
def asked(reasoner):
    return Policy(PolicyParams(reasoner)).eval()


def last_logprobs(policy, ids):
    with torch.no_grad():
        return policy.bare(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(0)


def test_labels_have_the_log_probs_of_a_plain_forward_whatever_stands_beside_them(asked):
    scores = label_scores(asked, ROWS)
    for place, row in enumerate(ROWS):
        expected = last_logprobs(asked, asked.encode(row["prompt"]))
        tokens = [asked.tokenizer(label[0], add_special_tokens=False)["input_ids"][0] for label in row["labels"]]
        assert torch.allclose(scores.logprobs[place], expected[tokens], atol=1e-5)
        assert float(scores.entropy[place]) == pytest.approx(float(-(expected.exp() * expected).sum()), abs=1e-5)
        assert bool(scores.is_label[place]) == (int(expected.argmax()) in tokens)
        restricted = expected[tokens].softmax(0)
        entropy = float(-(restricted * restricted.log()).sum())
        assert float(scores.option_entropy()[place]) == pytest.approx(entropy, abs=1e-5)


def test_a_label_is_scored_behind_what_all_labels_begin_with(asked):
    """The distribution before the answer and the one after it are both wrong positions."""
    row = {"id": "0", "prompt": "Which?", "labels": ["x1", "x2"]}
    x, one, two = (asked.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("x", "1", "2"))
    assert label_tokens(asked, row) == ([x], [one, two])
    expected = last_logprobs(asked, [*asked.encode(row["prompt"]), x])
    assert torch.allclose(label_scores(asked, [row]).logprobs[0], expected[[one, two]], atol=1e-5)


@pytest.mark.parametrize("labels", [["1", "10"], ["1", "2", "1"], ["xa", "xb", "xa1"]])
def test_labels_that_one_position_cannot_tell_apart_are_refused(asked, labels):
    with pytest.raises(ConfigError, match=r"row '9' are .*same token.*data\.labels to letters"):
        label_scores(asked, [ROWS[0], {"id": "9", "prompt": "?", "labels": labels}])


def test_texts_have_their_mean_log_prob_per_token(asked):
    prompts, texts = [row["prompt"] for row in ROWS], [["3", "45", "6789"], ["yes"], ["2", "3, as it is"]]
    scores = text_scores(asked, prompts, texts)
    for prompt, options, of_prompt in zip(prompts, texts, scores, strict=True):
        for text, score in zip(options, of_prompt, strict=True):
            ids, expected = asked.encode(prompt), []
            for token in asked.tokenizer(text, add_special_tokens=False)["input_ids"]:
                expected.append(float(last_logprobs(asked, ids)[token]))
                ids = [*ids, token]
            assert float(score) == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_many_rows_are_scored_in_parts_as_at_once(asked, monkeypatch):
    whole = label_scores(asked, ROWS * 3).logprobs
    monkeypatch.setattr("policies.choice_scores.TOKENS", 40)
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, label_scores(asked, ROWS * 3).logprobs, strict=True)
    )
    prompts, texts = [row["prompt"] for row in ROWS] * 2, [["3", "45"], ["yes"], ["2", "3"]] * 2
    assert [len(scores) for scores in text_scores(asked, prompts, texts)] == [2, 1, 2, 2, 1, 2]


def test_logits_in_bfloat16_do_not_make_labels_equal(reasoner):
    """The weights of two labels differ by less than bfloat16 distinguishes in their logits."""
    policy = Policy(PolicyParams(reasoner, compute="bfloat16")).eval()
    a, b = policy.tokenizer("AB", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        weight = policy.bare.get_output_embeddings().weight
        weight[a] *= 100
        weight[b] = weight[a] * 1.0005
    logprobs = label_scores(policy, [{"id": "0", "prompt": "Which?", "labels": ["A", "B"]}]).logprobs[0]
    assert logprobs[0] != logprobs[1]


def test_a_space_stands_between_two_words_and_nowhere_else(asked):
    space = asked.tokenizer(" ", add_special_tokens=False)["input_ids"]
    begun = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "The answer is"}]
    assert continuation(asked, begun, "A")[:1] == space
    for prompt in ("Which", ROWS[2]["prompt"], [*begun[:1], {"role": "assistant", "content": "The answer: ("}]):
        assert continuation(asked, prompt, "A")[:1] != space
