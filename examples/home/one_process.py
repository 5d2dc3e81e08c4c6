"""The cells of a notebook in one process: scores, a loop of its own, an engine of its own, and two trainings."""

import copy

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger
from sums.data import till
from torch.utils.data import DataLoader

from lightning_modules import GRPO, Evaluation
from objectives import ClippedSurrogate, GroupNorm, SequenceMean
from policies import Policy, PolicyParams
from rewards import ExactAnswer, FunctionReward
from rollouts import BatchPlan, EmbeddedEngine, SamplingParams, assemble, padded_forced

# Score strings, and completions that exist already.
right = ExactAnswer()
print("scores:", right.evaluate(["<think>1+1</think>2", "3"], answer=["2", "2"]))
policy, sampling = Policy(PolicyParams("assets/tiny_reasoner")), SamplingParams(max_new_tokens=40)
likely, unlikely = policy.score(["12+30=?"] * 2, ["</think>42", "</think>57"])
print(f"log-probs: {likely.sum():.2f} {unlikely.sum():.2f}")

# A training loop of one's own, with the distribution's parts.
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
for rows in DataLoader(till(8, seed=3), batch_size=4, collate_fn=list):
    batch = EmbeddedEngine().generate(policy, [policy.encode(row["prompt"]) for row in rows], rows, 4, sampling)
    mask, advantages = batch.action_mask, GroupNorm()(right(batch), batch.groups)
    logprobs, _ = policy.logprobs(batch.prompt_groups(torch.arange(len(batch.lengths))))
    loss, _ = ClippedSurrogate()(logprobs, batch.behaviour_logprobs, advantages[:, None].expand_as(logprobs), mask)
    (SequenceMean()(mask) @ (loss * mask).sum(1)).backward()
    optimizer.step(), optimizer.zero_grad()
policy.save("my_loop")


class Server(EmbeddedEngine):
    """An engine of one's own, which returns tokens without their log-probs."""

    def generate(self, policy, prompts, rows, group_size, sampling, forced=None, rows_at_once=None):
        served = super().generate(policy, prompts, rows, group_size, sampling, forced, rows_at_once)
        fixed = padded_forced(forced, len(served.lengths), served.lengths.device)
        return assemble(
            policy, prompts, rows, served.completion_ids, None, served.lengths, fixed, served.finish_reasons
        )


# Two trainings in turn: a plain loader, a function as a reward, two loggers, averaged weights, early stopping.
batches, held_out = (DataLoader(till(12, seed), batch_size=4, drop_last=True) for seed in (1, 2))
brief = FunctionReward(lambda completions: [-len(text) / 100 for text in completions], name="brief")
module = GRPO(PolicyParams("my_loop"), [right, brief], batch=BatchPlan(4, 4), sampling=sampling, engine=Server(),
              evaluation=Evaluation(samples=2), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4))  # fmt: skip
for cell in ("first", "second"):
    loggers = [CSVLogger("curves", name=cell), MLFlowLogger(cell, tracking_uri="sqlite:///mlflow.db")]
    watch = [EMAWeightAveraging(decay=0.9), EarlyStopping("val/pass@1", mode="max", patience=1)]
    trainer = L.Trainer(max_epochs=2, logger=loggers, callbacks=watch, accelerator="cpu", default_root_dir=cell)
    trainer.fit(module, batches, held_out)
    trainer.validate(copy.deepcopy(module), held_out, verbose=False)
    print(f"{cell}: {trainer.global_step} steps, pass@1 {float(trainer.callback_metrics['val/pass@1']):.2f}")
