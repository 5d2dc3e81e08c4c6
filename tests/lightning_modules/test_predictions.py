"""predict, test and the page of tokens: what they write, against plain forwards and hand-made records."""

import json
import math

import lightning as L
import pytest
import torch

from callbacks import WritePredictions
from cli import inspect
from lightning_modules import Evaluation, KLPenalty
from rewards import ExactAnswer, FunctionReward
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import build, digits, quiet_trainer, sums


def colour(completions, colour):
    return [1.0 for _ in colour]


def run(stage, folder, model, rewards, kl=0.1, samples=2, levels=(1, 2), **evaluation):
    L.seed_everything(0)
    batch, asked = BatchPlan(2, 2), Evaluation(samples=samples, sampling=SamplingParams(8), **evaluation)
    module = build(model, rewards, batch=batch, kl=KLPenalty(coefficient=kl), evaluation=asked)
    trainer = quiet_trainer(callbacks=[WritePredictions()], folder=folder, limit_val_batches=1.0)
    getattr(trainer, stage)(module, datamodule=sums(levels, val_size=12, train_size=8))
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_predictions_hold_rewards_and_the_log_prob_of_every_token(reasoner, tmp_path):
    module, _ = run("predict", tmp_path, reasoner, [FunctionReward(digits), FunctionReward(colour)])
    rows = [json.loads(line) for line in (tmp_path / "local/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and [row["id"] for row in rows[::2]] == [row["id"] for row in rows[1::2]]
    for row in rows:
        assert row["reward/digits"] == pytest.approx(digits([row["completion"]])[0]) and "reward/colour" not in row
        assert (
            "".join(row["tokens"]) == row["completion"] and len(row["tokens"]) == len(row["logprobs"]) == row["length"]
        )
        assert (row["finish"] == "eos") == (row["tokens"][-1] == "")
    for row in rows[:4]:
        prompt, completion = (
            module.policy.encode(row["prompt"]),
            module.policy.tokenizer(row["completion"], add_special_tokens=False)["input_ids"],
        )  # fmt: skip
        completion += [module.policy.tokenizer.eos_token_id] * (row["finish"] == "eos")
        if len(completion) != row["length"]:
            continue  # the text has a shorter tokenisation than the one that was sampled
        with torch.no_grad():
            logits = module.policy.model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        expected = [float(logits[len(prompt) + t - 1, token]) for t, token in enumerate(completion)]
        assert row["logprobs"] == pytest.approx(expected, abs=1e-4) and row["reference_logprobs"] == pytest.approx(
            expected, abs=1e-4
        )


def test_the_test_stage_has_intervals_and_lengths_by_difficulty(reasoner, assistant, tmp_path):
    class Half(ExactAnswer):
        """Right where the last character says so: an untrained model is never right."""

        def score(self, batch):
            return [float(len(text) % 2) for text in batch.completions]

    for model, thinks in ((reasoner, True), (assistant, False)):
        _, found = run("test", tmp_path, model, [Half()], samples=4, pass_k=[2])
        for level in (1, 2):
            for name in ("pass@1", "pass@2"):
                middle = found[f"test/{name}/addition-{level}"]
                assert (
                    0
                    <= found[f"test/{name}/addition-{level}/low"]
                    <= middle
                    <= found[f"test/{name}/addition-{level}/high"]
                    <= 1
                )
            assert 0 < found[f"test/length/addition-{level}"] <= 8
            assert (f"test/thinking_rate/addition-{level}" in found) == thinks
        lengths = [found[f"test/length/addition-{level}"] for level in (1, 2)]
        assert found["test/length"] == pytest.approx(sum(lengths) / 2), "as many prompts of each"


ROW = {
    "id": "a",
    "prompt": "1<2?",
    "tokens": ["<y", "es", ""],
    "logprobs": [-0.5, -2.0, 0.0],
    "finish": "eos",
    "length": 3,
    "reward/right": 0.25,
}


def page(folder, rows, *arguments):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return inspect.main([str(path), *arguments]).read_text()


def test_the_page_colours_tokens(tmp_path):
    text = page(tmp_path, [ROW])
    assert "1&lt;2?" in text and "reward/right 0.25" in text and "http" not in text and "<script" not in text
    assert (
        'rgba(235,130,20,0.25)" title="0.5">&lt;y<' in text
        and 'rgba(235,130,20,1.00)" title="2">es<' in text
        and "&#9633;" in text
    )
    text = page(tmp_path, [ROW | {"reference_logprobs": [-1.5, -1.0, 0.0]}])  # KL first where it is known
    assert 'rgba(31,97,200,1.00)" title="1">' in text and 'rgba(200,50,40,1.00)" title="-1">' in text
    text = page(tmp_path, [ROW | {"advantage": -2.0}, ROW | {"advantage": [1.0, 0.0, 0.5]}])
    assert (
        text.count('rgba(200,50,40,1.00)" title="-2"') == 3
        and 'rgba(31,97,200,0.50)" title="1"' in text
        and "advantage -2" in text
    )
    assert page(tmp_path, [ROW] * 3, "--limit", "2").count("<article>") == 2
    assert math.isclose(inspect.token_values(ROW, "surprise")[1], 2.0)
    with pytest.raises(ConfigError, match="has no kl"):
        page(tmp_path, [ROW], "--colour", "kl")
    with pytest.raises(ConfigError, match="holds no completions"):
        page(tmp_path, [{"id": 1, "score_0": 2.0}])
    with pytest.raises(ConfigError, match="does not exist"):
        inspect.main([str(tmp_path / "none.jsonl")])
