"""GRPO in one file: the whole method with plain PyTorch and transformers, to be read from top to bottom.

The idea. Sample a group of G completions for every prompt and reward each of them. Completions that earned more than
their group's mean become more likely, the others less likely. The group is the baseline: no value network is needed.

The formula, DeepSeekMath (arXiv 2402.03300) equation 3, to be maximised:

    J = 1/G sum_i 1/|o_i| sum_t [ min(ratio A_i, clip(ratio, 1 - eps, 1 + eps) A_i) - beta KL ]
    A_i = (R_i - mean(R)) / std(R)             over the G rewards of the same prompt
    ratio = pi(token) / pi_old(token)          pi_old is the policy that sampled the completions
    KL = r - log(r) - 1                        r = pi_ref(token) / pi(token), and pi_ref is the policy at the start

What it leaves out. lightning_modules.GRPO makes the same updates (a test compares the weights) and adds: fast sampling
and packed updates, micro-batches, several processes, LoRA, temperature and top-p, other advantages, losses and
aggregations, truncated completions, dynamic sampling, checkpoints that resume exactly, metrics and diagnosis.

How to run it. It needs no GPU and no download, and takes about a minute on a laptop:

    python examples/grpo_in_one_file.py
    python examples/grpo_in_one_file.py --steps 10 --kl 0 --epochs 2
"""

import argparse
import copy
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Config:
    model: str = str(Path(__file__).resolve().parents[1] / "assets/tiny_reasoner")  # a small one that adds
    steps: int = 20  # rollouts, each sampled from the current policy
    prompts: int = 16  # P, prompts per rollout
    group: int = 8  # G, completions per prompt, at least 2; a rollout has B = P * G rows
    max_tokens: int = 72  # maximum length of a completion
    updates: int = 2  # optimiser steps per pass over a rollout, on P / updates prompts each
    epochs: int = 1  # passes over a rollout
    clip: float = 0.2  # eps
    kl: float = 0.04  # beta
    lr: float = 1.5e-4  # the paper's 1e-6 is for a model of 7 billion weights
    max_norm: float = 1.0  # gradients with a larger norm are scaled down to it
    seed: int = 0


class Rollout(NamedTuple):
    """Prompts padded on the left to L tokens, then completions padded on the right to T; a prompt's G rows together."""

    ids: Tensor  # (B, L + T)
    attention: Tensor  # (B, L + T), 0 on padding, 1 elsewhere
    mask: Tensor  # (B, T), True on the tokens of the completion, its end token included


def draw_sums(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Prompts: (question, answer) pairs, sums of two numbers with two to five digits, as many of each length."""
    lowest = [10 ** (1 + row % 4) for row in range(count)]
    pairs = [(rng.randrange(low, 10 * low), rng.randrange(low, 10 * low)) for low in lowest]
    return [(f"{a}+{b}=?", str(a + b)) for a, b in pairs]


@torch.no_grad()
def sample(policy: Any, tokenizer: Any, questions: list[str], config: Config) -> Rollout:
    """Sampling: G completions of every question."""
    chats = [[{"role": "user", "content": question}] for question in questions for _ in range(config.group)]
    prompt = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt")
    # From the whole distribution at temperature 1, because that is the one whose log-probs the loss computes.
    whole = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    ids = policy.generate(**prompt, **whole, max_new_tokens=config.max_tokens)
    is_end = (ids[:, prompt["input_ids"].shape[1] :] == tokenizer.eos_token_id).long()
    mask = is_end.cumsum(1) - is_end == 0  # no end token before this one
    return Rollout(ids, torch.cat([prompt["attention_mask"], mask.long()], dim=1), mask)


def score(tokenizer: Any, rollout: Rollout, answers: list[str], group: int) -> Tensor:
    """Reward: 1 for a completion with the right answer behind its reasoning, else 0; (B,)."""
    rewards = []
    for row, (ids, mask) in enumerate(zip(rollout.ids[:, -rollout.mask.shape[1] :], rollout.mask, strict=True)):
        text = tokenizer.decode(ids[mask]).removesuffix(tokenizer.eos_token)
        _, end_of_reasoning, answer = text.rpartition("</think>")
        rewards.append(float(end_of_reasoning != "" and answer.strip() == answers[row // group]))
    return torch.tensor(rewards)


def group_advantages(rewards: Tensor, group: int) -> Tensor:
    """Advantage: (B,) rewards, normalised within their group. Zero where all G rewards are equal."""
    grouped = rewards.view(-1, group)  # (P, G)
    centred = grouped - grouped.mean(1, keepdim=True)
    return (centred / (grouped.std(1, keepdim=True) + 1e-4)).flatten()


def token_logprobs(model: Any, rollout: Rollout) -> Tensor:
    """log pi of every completion token, given all tokens before it; (B, T)."""
    positions = (rollout.attention.cumsum(1) - 1).clamp(min=0)  # counted from the first token that is not padding
    logits = model(input_ids=rollout.ids, attention_mask=rollout.attention, position_ids=positions).logits
    # The logits at a token are about the next token: (B, L + T - 1, vocabulary) for tokens 1 to L + T - 1.
    logprobs: Tensor = logits[:, :-1].log_softmax(-1).gather(-1, rollout.ids[:, 1:, None])[..., 0]
    return logprobs[:, -rollout.mask.shape[1] :]


def grpo_loss(new: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor, config: Config) -> Tensor:
    """Loss: -J of equation 3, averaged over prompts. Log-probs and mask are (B, T), advantages (B, 1)."""
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    kl = (ref - new).exp() - (ref - new) - 1
    gain = torch.minimum(ratio * advantages, clipped * advantages) - config.kl * kl
    return -((gain * mask).sum(1) / mask.sum(1)).mean()  # mean over a completion's tokens, then over completions


def update(policy: Any, reference: Any, optimizer: Any, rollout: Rollout, advantages: Tensor, config: Config) -> None:
    """Update: the optimiser steps of one rollout. The ratio is 1 in the first; the clip acts in those after it."""
    with torch.no_grad():
        old, ref = token_logprobs(policy, rollout), token_logprobs(reference, rollout)
    for rows in torch.arange(len(advantages)).chunk(config.updates) * config.epochs:
        part = Rollout(*(tensor[rows] for tensor in rollout))
        new = token_logprobs(policy, part)
        grpo_loss(new, old[rows], ref[rows], advantages[rows, None], part.mask, config).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_norm)
        optimizer.step()
        optimizer.zero_grad()


def train(config: Config) -> Any:
    """The loop; every rollout has new sums. Returns the trained policy."""
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    tokenizer = AutoTokenizer.from_pretrained(config.model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(config.model)  # in evaluation mode: without dropout
    reference = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, weight_decay=0.0)
    for step in range(1, config.steps + 1):
        sums = draw_sums(config.prompts, rng)
        rollout = sample(policy, tokenizer, [question for question, _ in sums], config)
        rewards = score(tokenizer, rollout, [answer for _, answer in sums], config.group)
        advantages = group_advantages(rewards, config.group)
        update(policy, reference, optimizer, rollout, advantages, config)
        print(f"step {step:3}  mean reward {rewards.mean():.3f}  mean length {rollout.mask.sum(1).float().mean():.1f}")
    return policy


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for field in fields(Config):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    train(Config(**vars(parser.parse_args())))
