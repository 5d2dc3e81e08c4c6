"""examples/grpo_in_one_file.py makes the updates of lightning_modules.GRPO, stands alone, and runs as its page says."""

import ast
import os
import random
import runpy
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from examples import grpo_in_one_file as example
from lightning_modules import GRPO, KLPenalty
from objectives import ClippedSurrogate
from policies import PolicyParams
from rewards import ExactAnswer
from rollouts import BatchPlan, Engine, RolloutBatch, SamplingParams

SCRIPT = Path(example.__file__)
ROOT = SCRIPT.parents[1]
SETTINGS = {
    "one update": {"updates": 1},
    "without KL": {"updates": 1, "kl": 0.0},
    "two mini-batches": {"updates": 2, "clip": 0.1},
    "two passes": {"updates": 1, "epochs": 2, "clip": 0.1},
    "two passes over two mini-batches, small gradients": {"updates": 2, "epochs": 2, "clip": 0.02, "max_norm": 0.05},
}


def configured(**changes):
    return example.Config(**{"steps": 3, "prompts": 4, "group": 4, "max_tokens": 64, "lr": 3e-4} | changes)


class Replay(Engine):
    """Returns the completions of recorded rollouts, one rollout per call, and checks that the prompts are the same."""

    def __init__(self, rollouts):
        self.rollouts = iter(rollouts)

    def generate(self, policy, prompts, rows, group_size, *arguments, **options):
        rollout = next(self.rollouts)
        time = rollout.mask.shape[1]
        prompt_ids, prompt_mask = rollout.ids[::group_size, :-time], rollout.attention[::group_size, :-time].bool()
        assert [ids[mask].tolist() for ids, mask in zip(prompt_ids, prompt_mask, strict=True)] == prompts
        # Lengths by the end token alone, so that a wrong mask of the example does not reach the module.
        end, completions = policy.tokenizer.eos_token_id, rollout.ids[:, -time:].tolist()
        lengths = [row.index(end) + 1 if end in row else time for row in completions]
        mask = torch.tensor([[step < length for step in range(time)] for length in lengths])
        return RolloutBatch(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=rollout.ids[:, -time:].masked_fill(~mask, policy.pad_token_id),
            completion_mask=mask,
            action_mask=mask,
            behaviour_logprobs=torch.zeros(mask.shape),  # not used: `matches` is False, so the module computes its own
            finish_reasons=["eos" if end in row else "length" for row in completions],
            rows=rows,
            decoder=policy.decode,
        )


class Watch(L.Callback):
    """Keeps the rollouts of a module, in the example's form, and its metrics."""

    def __init__(self):
        self.rollouts, self.metrics = [], []

    def on_train_batch_end(self, trainer, module, *arguments):
        batch = module.last_rollout
        repeated = [x.repeat_interleave(batch.group_size, 0) for x in (batch.prompt_ids, batch.prompt_mask)]
        ids, attention = (
            torch.cat([repeated[0], batch.completion_ids], 1),
            torch.cat([repeated[1], batch.completion_mask], 1),
        )
        self.rollouts.append(example.Rollout(ids, attention.long(), batch.completion_mask))
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def sums(config):
    """The data rows of a run of the example, in its order."""
    rng = random.Random(config.seed)
    pairs = [pair for _ in range(config.steps) for pair in example.draw_sums(config.prompts, rng)]
    return [{"id": str(row), "prompt": question, "answer": answer} for row, (question, answer) in enumerate(pairs)]


def fit_module(config, **parts):
    """(weights, rollouts, metrics) of lightning_modules.GRPO after a run on the example's sums."""
    module = GRPO(
        policy=PolicyParams(config.model),
        rewards=[ExactAnswer()],
        batch=BatchPlan(config.prompts, config.group, updates_per_rollout=config.updates, epochs=config.epochs),
        sampling=SamplingParams(max_new_tokens=config.max_tokens),
        loss=ClippedSurrogate(config.clip, config.clip),
        kl=KLPenalty(coefficient=config.kl, estimator="k3"),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0),
        max_grad_norm=config.max_norm,
        **parts,
    )
    watch = Watch()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(module, DataLoader(sums(config), batch_size=config.prompts, collate_fn=list))
    return flat(module.policy.model), watch.rollouts, watch.metrics


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def initial(config):
    return flat(example.AutoModelForCausalLM.from_pretrained(config.model))


def fit_example(config, monkeypatch, rollouts=None):
    """(weights, rollouts) of the example's `train`, which takes `rollouts` instead of sampling if there are some."""
    seen, replayed, sample = [], iter(rollouts or []), example.sample

    def watched(*arguments):
        seen.append(sample(*arguments) if rollouts is None else next(replayed))
        return seen[-1]

    monkeypatch.setattr(example, "sample", watched)
    return flat(example.train(config)), seen


def largest(difference):
    return float(difference.abs().max())


@pytest.mark.parametrize("sampler", ["example", "module"])
@pytest.mark.parametrize("name", SETTINGS)
def test_weights_equal_those_of_the_module(name, sampler, monkeypatch):
    """Three rollouts on the same prompts with the same completions, which either of the two has sampled.

    AdamW divides by the root of the mean square plus its eps of 1e-8. Where a gradient is as small as that, rounding
    is scaled up to a whole step; with 1e-5 the weights show whether the gradients are equal.
    """
    monkeypatch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=1e-5))
    config = configured(**SETTINGS[name])
    if sampler == "example":
        weights, rollouts = fit_example(config, monkeypatch)
        expected, _, metrics = fit_module(config, engine=Replay(rollouts), importance_cap=None)
    else:
        expected, rollouts, metrics = fit_module(config)
        weights, _ = fit_example(config, monkeypatch, rollouts)
    assert largest(weights - expected) < 1e-6
    assert largest(weights - initial(config)) > 5e-4
    assert (max(row["train/clip_fraction"] for row in metrics) > 0) == (config.updates * config.epochs > 1)
    assert config.max_norm == 1 or min(row["train/grad_norm"] for row in metrics) > config.max_norm


def test_weights_equal_those_of_the_module_with_the_usual_eps(monkeypatch):
    """The optimiser as it stands in the file: what differs is a small part of what the training changed."""
    config = configured()
    expected, rollouts, _ = fit_module(config)
    weights, _ = fit_example(config, monkeypatch, rollouts)
    assert (weights - expected).norm() < 1e-3 * (weights - initial(config)).norm()


def test_samples_come_from_the_distribution_of_the_log_probs(reasoner):
    """Frequencies of the first tokens after two prompts of different length, against softmax of an unpadded forward."""
    torch.manual_seed(0)
    group, questions = 5000, ["1+2=?", "12345+67890=?"]
    policy = example.AutoModelForCausalLM.from_pretrained(reasoner)
    tokenizer = example.AutoTokenizer.from_pretrained(reasoner, padding_side="left")
    with torch.no_grad():
        policy.model.norm.weight.mul_(8)  # an untrained model is nearly uniform, which would hide a wrong temperature
    rollout = example.sample(policy, tokenizer, questions, example.Config(group=group, max_tokens=1))
    parts = [example.Rollout(*(tensor[row : row + 1] for tensor in rollout)) for row in (0, group)]
    for part, tokens, question in zip(parts, rollout.ids[:, -1].view(2, group), questions, strict=True):
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            probs, logprob = policy(prompt).logits[0, -1].softmax(-1), example.token_logprobs(policy, part)
        assert float(logprob) == pytest.approx(float(probs[part.ids[0, -1]].log()), abs=1e-4)
        assert float(probs.max() / probs.median()) > 5 and float(probs.min()) * group > 1
        expected = group * probs
        chi_square = float(((tokens.bincount(minlength=len(probs)) - expected) ** 2 / expected).sum())
        freedom = len(probs) - 1
        assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_advantages_are_normalised_within_a_group():
    """Mean 0.25 and deviation 0.5 (of a sample, divided by G - 1); a group of equal rewards has none."""
    advantages = example.group_advantages(torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1]), 4)
    assert advantages.tolist() == pytest.approx([1.49970006, *[-0.49990002] * 3, 0, 0, 0, 0], abs=1e-7)


def test_log_probs_do_not_depend_on_the_padding():
    """On a model with absolute positions, where a prompt that is counted from its padding would be another one."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()
    ids, padding = torch.randint(1, 40, (2, 7)), torch.zeros(2, 3, dtype=torch.long)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])  # three tokens of the prompt, four of the completion
    attention = torch.cat([torch.ones(2, 3, dtype=torch.long), mask.long()], 1)
    with torch.no_grad():
        padded = torch.cat([padding, ids], 1), torch.cat([padding, attention], 1)
        logprobs = example.token_logprobs(model, example.Rollout(*padded, mask))
        for row, length in ((0, 7), (1, 5)):
            alone = model(ids[row : row + 1, :length]).logits[0].log_softmax(-1)
            expected = [float(alone[place - 1, ids[row, place]]) for place in range(3, length)]
            assert logprobs[row][mask[row]].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("2+1+0=3</think>3<eos>", 1),
        ("2+1+0=3</think>3", 1),
        ("</think> 3 <eos>", 1),
        ("2</think>4</think>3<eos>", 1),
        ("2</think>3</think>4<eos>", 0),
        ("2+1+0=3<eos>", 0),
        ("3", 0),
        ("</think>33<eos>", 0),
        ("</think><eos>", 0),
    ],
)
def test_the_answer_behind_the_reasoning_is_rewarded(completion, value):
    tokenizer = example.AutoTokenizer.from_pretrained(example.Config().model)
    ids = tokenizer([completion, "</think>3<eos>"], padding=True, return_tensors="pt", padding_side="right")
    rollout = example.Rollout(ids["input_ids"], ids["attention_mask"], ids["attention_mask"].bool())
    assert example.score(tokenizer, rollout, ["3", "4"], 1).tolist() == [value, 0]
    assert example.score(tokenizer, rollout, ["3"], 2).tolist() == [value, 1]


def test_the_file_is_short_and_stands_alone():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 150
    nodes = list(ast.walk(ast.parse(text)))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {f"{'.' * node.level}{node.module}" for node in nodes if isinstance(node, ast.ImportFrom)}
    packages = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert packages == {"torch", "transformers"}
    assert not {"__import__", "import_module"} & {getattr(node, "id", getattr(node, "attr", "")) for node in nodes}


def commands():
    return [line.strip() for line in example.__doc__.splitlines() if line.startswith("    python ")]


@pytest.mark.long  # its weights are compared with the module's in the normal suite
def test_the_script_raises_the_reward():
    program, *arguments = shlex.split(commands()[0])
    assert (program, arguments) == ("python", [str(SCRIPT.relative_to(ROOT))])
    without_ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *arguments, "--steps", "8", "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, env=without_ours, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rewards = [float(line.split("mean reward")[1].split()[0]) for line in done.stdout.splitlines()]
    # The first rollout is the initial policy's; the policy must be better by 0.17 on the last three.
    assert len(rewards) == 8 and sum(rewards[-3:]) / 3 > rewards[0] + 0.17, rewards


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_docstring_runs(command, monkeypatch, capsys):
    """As it is written, but for one short rollout."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [*shlex.split(command)[1:], "--steps", "1", "--prompts", "2", "--max_tokens", "8"])
    runpy.run_path(sys.argv[0], run_name="__main__")
    assert capsys.readouterr().out.startswith("step   1  mean reward 0.000  mean length 8.0")
