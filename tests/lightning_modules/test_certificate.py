"""The ways to a certificate that was not earned, tried through the command line: each is refused or paid for."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml

from datamodules.records_desk import draw_rows
from lightning_modules.hc_rlhf import Ledger, verify
from policies import Policy, PolicyParams
from support.errors import ConfigError
from support.seen_prompts import FILE, SeenPrompts

ODD = {"class_path": "rewards.FunctionReward", "init_args": {"function": "tests.helpers.rewards.odd"}}
EVEN = {"class_path": "rewards.FunctionReward", "init_args": {"function": "tests.helpers.rewards.even"}}


def run(stage, place, folder, *changes):
    """`main.py STAGE` with the small configuration of `place`, into runs/ of the folder."""
    from main import main

    return main([stage, f"--config={place.config}", f"--trainer.default_root_dir={folder}", *changes])


@pytest.fixture(scope="module")
def place(tmp_path_factory, assistant):
    """A policy with adapters of alpha 8, trained for a step on a file of prompts, its checkpoint, and no test yet."""
    folder = tmp_path_factory.mktemp("trained")
    prompts = [row["prompt"] for row in draw_rows("safety", 80, 1, 0.4)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    settings = {
        "seed_everything": 0,
        "model": {
            "class_path": "lightning_modules.HCRLHF",
            "init_args": {
                "policy": {"model": assistant, "lora": {"r": 2, "alpha": 8}},
                "rewards": [
                    {"class_path": "rewards.FunctionReward", "init_args": {"function": "tests.helpers.brevity"}}
                ],
                "cost": {"class_path": "rewards.PerTask", "init_args": {"rewards": {"default": ODD}}},
                "constraint": {"threshold": 0.1},
                "batch": {"prompts_per_rollout": 2, "group_size": 2},
                "sampling": {"max_new_tokens": 6},
                "evaluation": {"sampling": {"max_new_tokens": 2}},
                "kl": {"coefficient": 0.0},
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}},
            },
        },
        "data": {
            "class_path": "datamodules.FilePrompts",
            "init_args": {"source": str(folder / "prompts.jsonl"), "val_size": 4, "safety_size": 30},
        },
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    found = SimpleNamespace(config=config, folder=folder, prompts=prompts)
    callback = (
        '--trainer.callbacks+={"class_path": "callbacks.RolloutCheckpoint", "init_args": {"every_n_rollouts": 1}}'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(folder / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.chdir(folder)
        run("fit", found, folder / "runs", "--trainer.max_steps=1", "--model.test.skip=true", callback)
        found.checkpoint = folder / "runs/local/checkpoints/rollout_000001.ckpt"
        run("test", found, folder / "refused", f"--ckpt_path={found.checkpoint}")
    return found


@pytest.fixture
def after(place, here, monkeypatch):
    """The place after NO SOLUTION FOUND, with the ledger of that test."""
    assert certificate(place.folder / "refused")["verdict"] == "NO SOLUTION FOUND"
    # The second place of a journal's length is named after its path, so both have to stay where they were written.
    monkeypatch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(place.folder / "cache"))
    before = {file: file.read_bytes() for file in (place.folder / "cache").rglob("*") if file.is_file()}
    yield place
    shutil.rmtree(place.folder / "cache")
    for file, content in before.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def certificate(folder):
    return json.loads((folder / "local/certificate/certificate.json").read_text())


def ledger_tests(place):
    return Ledger(place.prompts).tests()


def test_a_trial_of_a_few_batches_spends_no_test(place, here, monkeypatch, capsys):
    monkeypatch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(here / "cache"))
    run("test", place, here / "runs", f"--ckpt_path={place.checkpoint}", "--trainer.fast_dev_run=true")
    assert "NOT TESTED" in capsys.readouterr().out and ledger_tests(place) == []


COOLER = "--model.sampling.temperature=0.5"
WAYS = {
    "fewer prompts": ["--data.safety_size=29"],
    "another alpha": ["--model.policy.lora.alpha=400"],
    "a higher allowance": [COOLER, "--model.test.allowance=4"],
    "nested cost": [f"--model.cost.init_args.rewards={json.dumps({'default': EVEN})}"],
    "another ledger": [COOLER, "--model.test.ledger=elsewhere"],
}
FURTHER_WAYS = {
    "a higher delta": ["--model.test.allowance=4", "--model.constraint.delta=0.4"],
    "sampling": [COOLER],
    "precision": ["--model.policy.dtype=bfloat16"],
    "autocast": ["--trainer.precision=bf16-mixed"],
    "seed": ["--seed_everything=1", "--data.seed=0"],
}


@pytest.mark.parametrize(
    "changes",
    [
        *(pytest.param(way, id=name) for name, way in WAYS.items()),
        *(pytest.param(way, id=name, marks=pytest.mark.long) for name, way in FURTHER_WAYS.items()),
    ],
)
def test_nothing_gives_a_second_test_after_no_solution_found(after, here, changes):
    ledger_before = len(ledger_tests(after))
    with pytest.raises(ConfigError, match=r"tested 1 time\(s\).*spent 0.1 of a failure probability of 0.1 for 1 test"):
        run("test", after, here / "again", f"--ckpt_path={after.checkpoint}", *changes)
    assert len(ledger_tests(after)) == ledger_before == 1 and not (here / "again/local/policy").exists()


def test_a_policy_that_failed_has_no_second_chance_on_fresh_prompts(after, here):
    fresh = [f"{text} And now?" for text in after.prompts]
    assert not set(fresh) & set(after.prompts)
    (here / "fresh.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in fresh))
    with pytest.raises(ConfigError, match=r"tested 1 time\(s\), 1 of them of the same policy on other prompts"):
        run("test", after, here / "again", f"--ckpt_path={after.checkpoint}", f"--data.source={here / 'fresh.jsonl'}")
    assert Ledger(fresh).tests() == [] and not (here / "again/local/policy").exists()


def test_the_same_test_again_shows_the_recorded_verdict_on_one_screen(after, here, capsys):
    run("test", after, here / "again", f"--ckpt_path={after.checkpoint}")
    first, again = certificate(after.folder / "refused"), certificate(here / "again")
    assert again["tested_at"] == first["tested_at"] and len(ledger_tests(after)) == 1
    out = capsys.readouterr().out
    lines = out[out.index("NO SOLUTION FOUND") :].splitlines()
    report = {line[2:15].strip(): line[15:] for line in lines if line.startswith("  ")}
    assert len(lines) <= 24 and str(after.checkpoint) in report["tested"] and again["policy_sha256"][:12] in out
    assert report["prompts"].startswith("30 of FilePrompts, split ") and "temperature 1" in report["generated"]
    assert "0 other test(s)" in report["tests"] and "nothing was tested again" in report["tests"]
    assert report["delta"].startswith("0.1 of 0.1 spent") and report["delta"].endswith("0 left")
    assert "assistant" in report["unknown"], "the start has no record of its prompts"
    assert "2 events" in report["ledger"] and str(after.folder / "cache") in report["ledger"]


def test_prompts_that_the_policy_was_trained_on_are_refused_by_name(after, here):
    with pytest.raises(ConfigError, match=r"\d+ of 60 prompts of the safety split are also in the train split of File"):
        run("test", after, here / "again", f"--ckpt_path={after.checkpoint}", "--data.safety_size=60")
    # a checkpoint of an earlier version has no record, which the certificate says
    saved = torch.load(after.checkpoint, weights_only=True)
    assert len(SeenPrompts.from_state_dict(saved["seen_prompts"]).by_source["the train split of FilePrompts"]) == 46
    del saved["seen_prompts"]
    torch.save(saved, here / "old.ckpt")
    run("test", after, here / "old", f"--ckpt_path={here / 'old.ckpt'}")
    assert any("without fingerprints" in name for name in certificate(here / "old")["prompts_unknown"])
    assert "without fingerprints" in (here / "old/local/certificate/certificate.html").read_text()


def test_a_start_that_saw_the_prompts_is_refused_before_training(place, here, assistant):
    """As an exported folder of supervised fine-tuning brings them."""
    start = here / "start"
    shutil.copytree(assistant, start)
    seen = SeenPrompts()
    seen.add("the train split of Demonstrations", place.prompts)
    seen.save(start)
    with pytest.raises(ConfigError, match=r"30 of 30 .* the train split of Demonstrations \(seen by .*start\)"):
        run("fit", place, here / "runs", f"--model.policy.model={start}", "--trainer.max_steps=1")


@pytest.fixture(scope="module")
def exported(place, tmp_path_factory):
    """The run folder of a passed test of the same checkpoint, in a cache of its own."""
    folder = tmp_path_factory.mktemp("safe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(folder / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.chdir(folder)
        run("test", place, folder, f"--ckpt_path={place.checkpoint}", "--model.constraint.threshold=0.99")
    return folder


@pytest.fixture
def certified(exported, here, monkeypatch):
    """A copy of the exported policy."""
    monkeypatch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(exported / "cache"))
    return shutil.copytree(exported / "local/policy", here / "policy")


def test_what_is_exported_is_what_was_tested(certified, exported):
    facts = verify(certified)
    settings = json.loads((certified / "generation_config.json").read_text())
    assert settings["max_new_tokens"] == 6 and settings["do_sample"] and settings["top_k"] == 0
    assert facts["export_logprob_difference"]["mean"] < 1e-4 and "at most 6 new tokens" in facts["generated"]
    page = (exported / "local/certificate/certificate.html").read_text()
    assert "generated at temperature 1, top-p 1, no top-k, at most 6 new tokens" in page and "not signed" in page
    assert facts["ledger"]["events"] == 2 and len(facts["ledger"]["hash"]) == 64
    assert facts["ledger"]["path"].endswith("ledgers/journal.jsonl") and "not in the default place" in page
    saved = json.loads((certified / FILE).read_text())
    assert "the train split of FilePrompts" in saved["prompts"], "the record travels with the exported folder"


def test_other_weights_are_not_exported(place, here, monkeypatch):
    """An export whose adapter is merged with another scale, as by a fault of a library."""
    from policies import policy as module

    original = module.Policy.weights
    inside = []

    def scaled(self):
        for name, weight in original(self):
            yield name, weight * 1.5 if inside and "q_proj" in name else weight

    def save(self, folder):
        inside.append(True)
        try:
            saved(self, folder)
        finally:
            inside.pop()

    saved = module.Policy.save
    monkeypatch.setattr(module.Policy, "weights", scaled)
    monkeypatch.setattr(module.Policy, "save", save)
    with pytest.raises(ConfigError, match="not what was tested|not bit for bit the tested ones"):
        run("test", place, here / "safe", f"--ckpt_path={place.checkpoint}", "--model.constraint.threshold=0.99")
    assert not (here / "safe/local/policy").exists()


def _edit(**changes):
    def edit(folder):
        facts = json.loads((folder / "certificate.json").read_text())
        (folder / "certificate.json").write_text(json.dumps(facts | changes))

    return edit


def _keep(*names):
    def edit(folder):
        facts = json.loads((folder / "certificate.json").read_text())
        (folder / "certificate.json").write_text(json.dumps({name: facts[name] for name in names}))

    return edit


def _linked_folder(folder):
    (folder / "elsewhere").mkdir()
    (folder / "additional_chat_templates").symlink_to(folder / "elsewhere")


def _linked_weights(folder):
    outside = folder.with_name("weights.safetensors")
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def _nested_certificate(folder):
    (folder / "sub").mkdir()
    (folder / "sub/certificate.json").write_text("{}")


def _other_weights(folder):
    """Other weights with matching hashes of the files, as whoever can write the folder can make."""
    from lightning_modules.hc_rlhf.verify import file_hashes

    policy = Policy(PolicyParams(str(folder)))
    with torch.no_grad():
        next(policy.model.parameters()).add_(0.1)
    policy.model.save_pretrained(folder)
    _edit(files=file_hashes(folder))(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_linked_folder, "additional_chat_templates, which is not a regular file"),
        (_linked_weights, "model.safetensors, which is not a regular file"),
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe, which is not a regular file"),
        (_keep("verdict", "files"), "no readable certificate.*without a valid entry 'ucb'"),
        (_edit(ucb=99.0), "contradicts itself"),
        (_edit(ucb=float("nan")), "contradicts itself"),
        (_edit(threshold=float("inf")), "contradicts itself"),
        (_edit(ucb=10**400), "no readable certificate"),
        (_edit(threshold=5.0, ucb=4.0), "no passed test like the one"),
        (_edit(test={"split": "x", "candidate": "y", "question": "z"}), "no passed test like the one"),
        (_nested_certificate, "added: sub/certificate.json"),
        (_other_weights, "the weights in .* have the fingerprint"),
    ],
)
def test_verify_refuses(certified, damage, message):
    damage(certified)
    with pytest.raises(ConfigError, match=message):
        verify(certified)


def test_a_certificate_is_checked_without_its_ledger_too(certified, here):
    """On another machine the ledger is missing."""
    _edit(ledger={"path": str(here / "nowhere/journal.jsonl")})(certified)
    assert verify(certified)["verdict"] == "SAFE"
