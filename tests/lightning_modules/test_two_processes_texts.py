"""Classifier and embedder on two processes do what they do on one: gradients, scores, and negatives of all rows."""

from functools import partial
from pathlib import Path

import pytest
import torch

from datamodules import AuthorshipPrograms, Triplets
from lightning_modules import SequenceClassifier, TripletEmbedder
from objectives import MultipleNegatives
from policies import PolicyParams
from tests.helpers import ROOT, fit, sgd
from tests.helpers.processes import run_on_two

CLASSIFIER = {"head_width": 8, "head_dropout": 0.0, "max_length": 32, "optimizer": sgd(0.3)}
EMBEDDER = {"loss": MultipleNegatives(), "mine_every": 2, "max_length": 32, "optimizer": sgd(0.3)}


def main(processes, model, folder):
    torch.set_num_threads(1)
    encoder = PolicyParams(str(ROOT / "assets/tiny_encoder"))
    programs = AuthorshipPrograms(size=60, batch_size=4, split="random", seed=1)
    triplets = Triplets(batch_size=4, train_size=16, val_size=4, seed=1)
    cases = {
        "classifier": (partial(SequenceClassifier, encoder, **CLASSIFIER), programs),
        "embedder": (partial(TripletEmbedder, PolicyParams(model), **EMBEDDER), triplets),
    }
    rank = 0
    for name, (make, data) in cases.items():
        module = make()
        options = {"devices": processes, "strategy": "ddp"} if processes > 1 else {}
        trainer = fit(module, 3, data=data, seed=0, validate_every=3, use_distributed_sampler=False, **options)
        rank = trainer.global_rank
        weights = torch.cat([weight.detach().flatten() for weight in module.parameters()])
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        torch.save({"weights": weights, "metrics": metrics}, Path(folder) / f"{name} {processes} {rank}.pt")


def test_two_processes_do_what_one_does(reasoner, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    main(1, reasoner, tmp_path)
    log = tmp_path / "log.txt"
    assert run_on_two(main, 2, reasoner, str(tmp_path), log=log) == [0, 0], log.read_text()[-4000:]
    for name in ("classifier", "embedder"):
        one = torch.load(tmp_path / f"{name} 1 0.pt")
        for rank in (0, 1):
            two = torch.load(tmp_path / f"{name} 2 {rank}.pt")
            assert torch.allclose(one["weights"], two["weights"], atol=1e-5, rtol=0), name
            assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-4), name
