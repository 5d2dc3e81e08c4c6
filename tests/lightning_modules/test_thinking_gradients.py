"""AdaptThink's and AutoThink's expected gradients against enumeration of everything that a tiny policy can say.

Seven tokens, completions of at most two: 5 * 7 + ... sequences, each with its exact probability. The module's own parts
(first tokens, behaviour, advantages, loss) make the gradient on one side; on the other stand formulas over the model's
logits, in double precision.
"""

import itertools
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_modules import AdaptThink, AutoThink, Forcing
from policies import PolicyParams
from rewards import FunctionReward
from rollouts import BatchPlan, RolloutBatch, SamplingParams
from rollouts.first_tokens import FirstTokens, next_token_logprobs
from tests.conftest import save_tiny

TOKENS = ["<pad>", "<eos>", "<think>", "</think>", "a", "b", "?"]
EOS, CLOSE = 1, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(TOKENS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(TOKENS[:4])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"
    )
    return save_tiny(tmp_path_factory.mktemp("seven"), fast, layers=1)


class Right(FunctionReward):
    is_correctness = True


def right(completions):
    """Something that differs between sequences of the same mode."""
    return [float("b" in text) for text in completions]


def prepared(module):
    module.configure_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.policy.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # a policy with preferences
    module.policy.double()
    return module


def sequences():
    """Every completion of at most two tokens: one that ends at once, and all pairs."""
    return [
        [EOS],
        *([first, second] for first, second in itertools.product(range(len(TOKENS)), repeat=2) if first != EOS),
    ]


def batch_of(module, prompt, completions):
    ids = torch.tensor([row + [0] * (2 - len(row)) for row in completions])
    mask = torch.arange(2) < torch.tensor([len(row) for row in completions])[:, None]
    tokens = torch.tensor([prompt])
    reasons = ["eos" if EOS in row else "length" for row in completions]
    zeros = torch.zeros(ids.shape)
    return RolloutBatch(
        tokens,
        torch.ones_like(tokens).bool(),
        ids,
        mask,
        mask.clone(),
        zeros,
        reasons,
        [{"prompt": "a"}],
        decoder=module.policy.decode,
    )


def log_probabilities(module, prompt, completions):
    """log pi of every token of every completion, from plain forward passes over [prompt, first token]."""
    first = module.policy.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    after = [
        module.policy.model(torch.tensor([[*prompt, token]])).logits[0, -1].log_softmax(-1)
        for token in range(len(TOKENS))
    ]
    return [[first[row[0]], *([after[row[0]][row[1]]] if len(row) == 2 else [])] for row in completions], first


def gradient(module, value):
    found = torch.autograd.grad(value, [p for p in module.policy.model.parameters()], allow_unused=True)
    return torch.cat([torch.zeros(1) if g is None else g.flatten() for g in found])


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def module_loss(module, batch, weights):
    """The loss of an update with every row weighted by its probability instead of being sampled."""
    rows = torch.arange(len(weights))
    logprobs, _ = module.policy.logprobs(batch.prompt_groups(rows))
    behaviour = module.behaviour(batch, rows, logprobs.detach())
    loss, _ = module.token_loss(
        logprobs, behaviour, None, batch.advantages[:, None].expand(logprobs.shape), batch.action_mask
    )
    row_weights = module.aggregation(batch.action_mask) * len(weights)
    return (torch.where(batch.action_mask, loss, 0.0).sum(1) * row_weights * weights).sum()


@pytest.mark.parametrize("start", ["sampled", "fixed"])
@pytest.mark.parametrize("ratio", ["sequence_mean", "sequence", "token", "unclipped"])
def test_adapt_think(folder, ratio, start):
    clip = (1.0, 1e9) if ratio == "unclipped" else (0.2, 0.2)
    module = AdaptThink(
        PolicyParams(folder),
        [Right(right)],
        delta=0.3,
        forcing=Forcing(thinking_first_token=start, start_word="a"),
        ratio="sequence" if ratio == "unclipped" else ratio,
        clip_low=clip[0],
        clip_high=clip[1],
        batch=BatchPlan(2, 2),
        sampling=SamplingParams(max_new_tokens=2),
    )
    prepared(module)
    prompt = module.prompt_tokens({"prompt": "a"})
    word = TOKENS.index("a")
    completions = [row for row in sequences() if start == "sampled" or row[0] in (CLOSE, word)]
    batch = batch_of(module, prompt, completions)
    batch.rewards = module.score(batch)
    module.reference_means = {module_key(batch.rows[0]): 0.4}
    batch.advantages = module.advantages(batch)

    # the module's own first tokens give the behaviour log-probs of those it draws; the enumeration needs them for all
    drawn = module.first_tokens(
        next_token_logprobs(module.policy, [prompt] * 200), torch.rand(200, module.batch.group_size)
    )
    known = {tuple(t): lp for t, lp in zip(drawn.tokens, drawn.logprobs, strict=True)}
    assert {row[0] for row in completions} == {t[0] for t in known}, "everything was drawn at least once"
    FirstTokens([[row[0]] for row in completions], [known[(row[0],)] for row in completions]).mark(batch)

    new, first = log_probabilities(module, prompt, completions)
    close = float(first[CLOSE].detach().exp())
    behaviour, probability, terms = [], [], []
    for row, logs in zip(completions, new, strict=True):
        if row[0] == CLOSE:
            begin = math.log(0.5)
        elif start == "fixed":
            begin = math.log(0.5)
        else:
            begin = math.log(0.5) + logs[0].item() - math.log(1 - close)
        behaviour.append([begin, *(x.item() for x in logs[1:])])
        probability.append(math.exp(sum(behaviour[-1])))
    assert sum(probability) == pytest.approx(1.0), "pi_IS is a distribution"
    for i, (logs, old) in enumerate(zip(new, behaviour, strict=True)):
        text = [TOKENS[t] for t in completions[i]]
        well_formed = text.count("</think>") == 1 and "<think>" not in text
        advantage = 0.3 * answers_at_once(text) + (1.0 if "b" in text and well_formed else 0.0) - 0.4
        assert float(batch.advantages[i]) == pytest.approx(advantage)
        ratios = [(a - b).exp() for a, b in zip(logs, old, strict=True)]
        total = sum(a - b for a, b in zip(logs, old, strict=True))
        pieces = {"token": ratios, "sequence_mean": [(total / len(logs)).exp()]}.get(
            ratio, [total.exp()] if ratio != "token" else ratios
        )
        clipped = [r.clamp(1 - clip[0], 1 + clip[1]) for r in pieces]
        value = sum(torch.minimum(r * advantage, c * advantage) for r, c in zip(pieces, clipped, strict=True)) / len(
            pieces
        )
        terms.append(probability[i] * -value)
    expected = gradient(module, torch.stack(terms).sum())
    weights = torch.tensor(probability, dtype=torch.float64)
    assert relative_error(gradient(module, module_loss(module, batch, weights)), expected) < 1e-5
    if ratio == "unclipped":
        # without clipping, the whole-sequence ratio weighs forced samples as the policy's own: the gradient of E_pi[A]
        plain, _ = log_probabilities(module, prompt, completions)
        objective = -torch.stack(
            [sum(logs).exp() * float(a) for logs, a in zip(plain, batch.advantages, strict=True)]
        ).sum()
        assert relative_error(gradient(module, objective), expected) < 1e-5


def module_key(row):
    from lightning_modules.core.reference_rewards import prompt_key

    return prompt_key(row)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_auto_think(folder, stage):
    """Groups of two: every pair of completions with its probability, and the module's advantages in each pair."""
    module = AutoThink(
        PolicyParams(folder),
        [Right(right)],
        stage=stage,
        ellipsis="",
        batch=BatchPlan(2, 2),
        sampling=SamplingParams(2),
    )
    prepared(module)
    prompt = module.prompt_tokens({"prompt": "a"})
    module._trainer = type("OneProcess", (), {"world_size": 1})()
    pairs = list(itertools.product(sequences(), repeat=2))
    rows = [row for pair in pairs for row in pair]
    batch = batch_of(module, prompt, rows)
    batch = RolloutBatch(
        batch.prompt_ids.expand(len(pairs), -1), batch.prompt_mask.expand(len(pairs), -1), batch.completion_ids,
        batch.completion_mask, batch.action_mask, batch.behaviour_logprobs,
        batch.finish_reasons, [{"prompt": "a"}] * len(pairs),
        decoder=batch.decoder,
    )  # fmt: skip
    batch.rewards = module.score(batch)
    batch.advantages = module.advantages(batch).double()
    single, _ = log_probabilities(module, prompt, sequences())
    logs = {tuple(row): sum(values) for row, values in zip(sequences(), single, strict=True)}

    thinking = [not answers_at_once([TOKENS[t] for t in row]) for row in rows]
    share = sum(thinking) / len(rows)
    assert module.metrics(batch)["thinking_rate"] == pytest.approx(share)
    terms, tokens = [], sum(map(len, rows))
    for number, pair in enumerate(pairs):
        rewards = [table(row, share, stage) for row in pair]
        if stage == 3 and rewards[0][1] == rewards[1][1] and len(pair[0]) != len(pair[1]):
            for i in (0, 1):
                y = (len(pair[i]) - 1.5) / 0.5**0.5
                rewards[i] = (
                    rewards[i][0] + (math.exp(-0.05 * y) - 1 if rewards[i][1] else 1 - math.exp(-0.05 * y)),
                    rewards[i][1],
                )
        values = [reward for reward, _ in rewards]
        mean, std = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
        probability = math.exp(logs[tuple(pair[0])].item() + logs[tuple(pair[1])].item())
        for i in (0, 1):
            advantage = (values[i] - mean) / (std + 1e-4)
            assert float(batch.advantages[2 * number + i]) == pytest.approx(advantage, abs=2e-3), pair
            terms.append(
                -probability * float(batch.advantages[2 * number + i]) * logs[tuple(pair[i])] / tokens * len(rows)
            )
    expected = gradient(module, torch.stack(terms).sum())
    weights = torch.tensor(
        [math.exp(logs[tuple(a)].item() + logs[tuple(b)].item()) for a, b in pairs for _ in (0, 1)], dtype=torch.float64
    )
    assert relative_error(gradient(module, module_loss(module, batch, weights)), expected) < 1e-5


def answers_at_once(row_text):
    """Only blanks before </think>, and no block after it."""
    return (
        row_text[0] == "</think>"
        and row_text[-1] != "<think>"
        or row_text in (["<pad>", "</think>"], ["<think>", "</think>"])
    )


def table(row, share, stage):
    """(reward, correct) of one completion, from the paper's tables."""
    text = [TOKENS[t] for t in row]
    last_open, last_close = (
        max((i for i, t in enumerate(text) if t == mark), default=-1) for mark in ("<think>", "</think>")
    )
    closed = "</think>" in text and last_open < last_close
    thinks = not answers_at_once(text)
    correct = closed and "b" in text
    answer = [t for t in text[last_close + 1 :] if t in ("a", "b", "?")]
    if thinks:
        reward, target = float(correct), float(correct) - 1
    else:
        reward, target = (2.0, 1.0) if correct else ((-1.0 if answer else 0.0), -2.0)
    if stage == 1:
        penalty = min(max(((share if thinks else 1 - share) - 0.5) * 2, 0), 1)
        reward = (1 - penalty) * reward + penalty * target
    return reward, correct
