"""Model cards of exported folders are read by the Hub's own reader, and their uploads by a folder in its place."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from callbacks import ExportAdapter, ExportPolicy, PushToHub
from callbacks import push_to_hub as uploads
from lightning_modules.core.evaluation import Evaluation
from policies import LoRA
from rewards import ExactAnswer
from support.errors import ConfigError
from tests.helpers import build, fit, sums
from tracking.model_card import write_card


def trained(model, folder, *callbacks, lora=None, steps=1):
    module = build(model, [ExactAnswer()], lora=lora, evaluation=Evaluation(samples=2))
    options = {"folder": folder / "runs", "validate_every": 1}
    return module, fit(module, steps, callbacks, data=sums(train_size=8, val_size=6), seed=0, **options)


def test_a_card_says_what_was_trained_how_good_it_is_and_how_to_load_it(reasoner, tmp_path, capsys):
    folder = tmp_path / "policy"
    upload = PushToHub("someone/sums", dry_run=str(tmp_path / "hub"))  # before the export in the list: it runs after it
    module, trainer = trained(reasoner, tmp_path, upload, ExportPolicy(str(folder)))
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert {"lightning-posttrain", "grpo", "arxiv:2402.03300"} <= set(card.data.tags)
    results = {result.metric_type: result for result in card.data.eval_results}
    logged = float(trainer.callback_metrics["val/pass@1"])
    assert results["pass@1"].metric_value == pytest.approx(logged, abs=1e-6)
    assert results["pass@1"].dataset_name == "ArithmeticPrompts" and results["length"].metric_value > 0
    correct = [count / samples for _, samples, count in module.problem_counts[0].counts]
    low, high = map(float, re.search(r"\| pass@1 \| \S+ \| (\S+) to (\S+) \|", card.text).groups())
    assert min(correct) <= low <= logged <= high <= max(correct)
    assert "https://arxiv.org/abs/2402.03300" in card.text and "8 for training, 6 for validation" in card.text
    assert "Certificate" not in card.text and "1 optimiser steps" in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), {})
    assert "12+30" in capsys.readouterr().out.replace(" ", "")
    copies = {path.name: path.read_bytes() for path in (tmp_path / "hub/someone/sums").iterdir()}
    assert copies == {path.name: path.read_bytes() for path in folder.iterdir()} and "model.safetensors" in copies
    # As HC-RLHF writes it, with the configuration of a run from the command line.
    config = {"model": {"init_args": {"rewards": [{"init_args": {"api_key": "hush", "weight": 1.0}}]}}, "trainer": {}}
    Path(tmp_path, "runs/local/config_fit.yaml").write_text(yaml.safe_dump(config))
    facts = {"verdict": "SAFE", "ucb": 0.05, "threshold": 0.2, "delta": 0.1, "samples": 300}
    write_card(trainer, module, folder, facts)
    text = (folder / "README.md").read_text()
    assert "SAFE: the mean cost is at most 0.05 (threshold 0.2) with confidence 0.9, on 300 held-out prompts" in text
    assert "hush" not in text and "api_key: (left out)" in text and "weight: 1.0" in text and "trainer:" not in text


def test_an_adapters_card_names_peft_and_a_missing_export_is_not_uploaded(reasoner, tmp_path, capsys):
    upload = PushToHub("someone/sums", folder=str(tmp_path / "absent"), dry_run=str(tmp_path / "hub"))
    trained(reasoner, tmp_path, ExportAdapter(str(tmp_path / "adapter")), upload, lora=LoRA(r=2, alpha=4))
    card = ModelCard.load(tmp_path / "adapter/README.md")
    assert card.data.library_name == "peft" and "AutoPeftModelForCausalLM" in card.text and "rank 2" in card.text
    assert "absent was not exported, so nothing is uploaded" in capsys.readouterr().out
    assert not (tmp_path / "hub").exists()


class Hub:
    """Stands for the Hub's client: remembers calls, or refuses them."""

    calls: list = []
    refuses = False

    def create_repo(self, repo, **options):
        self.calls.append((repo, options))
        if self.refuses:
            raise OSError("no network")
        return f"https://hub.example/{repo}"

    def upload_folder(self, **options):
        self.calls.append(options)


def test_an_upload_names_the_repository_and_a_refusal_ends_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(uploads, "HfApi", Hub)
    upload = PushToHub("someone/sums", private=False)
    upload._upload(tmp_path)
    (_, created), sent = Hub.calls
    assert created == {"private": False, "exist_ok": True}
    assert sent["repo_id"] == "someone/sums" and sent["folder_path"] == str(tmp_path)
    monkeypatch.setattr(Hub, "refuses", True)
    upload._upload(tmp_path)
    assert f"no network). The folder is complete; upload it with: hf upload someone/sums {tmp_path}" in (
        capsys.readouterr().out
    )


def test_mistakes_are_refused_before_training(reasoner, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="not a name of the Hub"):
        PushToHub("some one/sums/more")
    with pytest.raises(ConfigError, match="exports 0 folders"):
        trained(reasoner, tmp_path, PushToHub("someone/sums", dry_run="hub"), steps=0)
    monkeypatch.setattr(uploads, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="nobody is logged in"):
        trained(reasoner, tmp_path, PushToHub("someone/sums"), ExportPolicy(str(tmp_path / "policy")), steps=0)
