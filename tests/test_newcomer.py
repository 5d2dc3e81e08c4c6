"""The first mistakes of a newcomer: each ends in one paragraph that says what to change, before anything is trained.

docs/howto/mistakes.md lists them in the same order.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from main import main
from support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a newcomer's own files, some of them with a mistake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    (tmp_path / "questions.jsonl").write_text(300 * (json.dumps({"question": "1+1=?", "answer": "2"}) + "\n"))
    (tmp_path / "numbers.jsonl").write_text(300 * (json.dumps({"prompt": 7, "answer": "2"}) + "\n"))
    (tmp_path / "tabs.yaml").write_text("model:\n\tclass_path: lightning_modules.GRPO\n")
    (tmp_path / "gpro.yaml").write_text(
        "model: {class_path: lightning_modules.GPRO}\ndata: {class_path: datamodules.ArithmeticPrompts}\n"
    )
    (tmp_path / "twice.yaml").write_text(
        "model:\n  init_args:\n    batch: {group_size: 4}\n    batch: {prompts_per_rollout: 4}\n"
    )
    (tmp_path / "newcomers_rewards.py").write_text("def total(completions):\n    return 1.0\n")
    return tmp_path


def function(path):
    return "--model.rewards=" + json.dumps([{"class_path": "rewards.FunctionReward", "init_args": {"function": path}}])


MISTAKES = {
    "no command": (
        ["--config=configs/grpo.yaml"],
        "'--config=configs/grpo.yaml' is not a command; the commands are fit, validate",
    ),
    "another project's command": (["train", "--config=configs/grpo.yaml"], "Did you mean 'fit'?"),
    "no configuration": (["fit"], "Name one: python main.py fit --config configs/grpo.yaml"),
    "a configuration without its folder": (["fit", "--config=grpo.yaml"], "Did you mean --config configs/grpo.yaml?"),
    "a configuration misspelt": (["fit", "--config=configs/gpro.yaml"], "Did you mean --config configs/grpo.yaml?"),
    "tabs in a configuration": (["fit", "--config=tabs.yaml"], "tabs.yaml is not valid YAML (line 2, column 1)"),
    "a key twice": (["fit", "--config=twice.yaml"], "the key 'batch' occurs twice in this mapping"),
    "a method misspelt": (["fit", "--config=gpro.yaml"], "Did you mean lightning_modules.GRPO?"),
    "an option misspelt": (["--model.bacth.group_size=4"], "Did you mean --model.batch.group_size?"),
    "an option without its section": (["--group_size=4"], "Did you mean --model.batch.group_size?"),
    "another project's option": (["--learning_rate=1e-5"], "Did you mean --model.optimizer.lr?"),
    "another project's option, for the model": (["--model.beta=0.1"], "Did you mean model.kl.coefficient?"),
    "a batch size for the data": (["--data.batch_size=8"], "Did you mean model.batch.prompts_per_rollout?"),
    "a word for a number": (
        ["--model.batch.group_size=eight"],
        "model.batch.group_size is 'eight'; it must be a whole number.",
    ),
    "an optimiser's option misspelt": (
        ["--model.optimizer.weight_decai=0.1"],
        "unknown key 'weight_decai' in model.optimizer (torch.optim.AdamW). Did you mean 'weight_decay'?",
    ),
    "a word for a learning rate": (["--model.optimizer.lr=fast"], "model.optimizer.lr is 'fast'"),
    "a value that is not allowed": (["--model.batch.lr_per=epoch"], "it must be one of 'update', 'rollout'"),
    "a part that the method sets itself": (
        ["--model=lightning_modules.AdaptThink", "--model.loss.clip_high=0.3"],
        "AdaptThink sets its loss itself, so model.loss.clip_high cannot be set. Set model.clip_high instead.",
    ),
    "a model's folder misspelt": (["--model.policy.model=assets/tiny_resoner"], "assets/tiny_resoner' does not exist"),
    "layers of another model": (
        ["--model.policy.lora.target_modules=[q_prj]"],
        "Its layers are down_proj, gate_proj, k_proj",
    ),
    "a GPU that does not exist": (["--trainer.accelerator=gpu"], "PyTorch finds no such device"),
    "a group of one": (["--model.batch.group_size=1"], "set batch.group_size to 2 or more"),
    "data without a prompt": (
        ["--data=datamodules.FilePrompts", "--data.source=questions.jsonl"],
        "it has no 'prompt', only ['answer', 'question']",
    ),
    "numbers as prompts": (
        ["--data=datamodules.FilePrompts", "--data.source=numbers.jsonl"],
        "row 0 of 'numbers.jsonl' holds 7 (int); a prompt is a text",
    ),
    "data that does not exist": (
        ["--data=datamodules.FilePrompts", "--data.source=question.jsonl"],
        "'question.jsonl' does not exist",
    ),
    "a reward function misspelt": (
        [function("newcomers_rewards.totl")],
        "the reward function 'newcomers_rewards.totl' cannot be imported",
    ),
    "a reward function that returns one number": (
        [function("newcomers_rewards.total")],
        "it must return a list with a number",
    ),
    "a reward misspelt": (
        ['--model.rewards=[{"class_path": "rewards.ExactAnser"}]'],
        "Did you mean rewards.ExactAnswer?",
    ),
    "a number among the rewards": (
        ["--model.rewards=[rewards.ExactAnswer, 5]"],
        "model.rewards contains '5', which is not a Reward",
    ),
    "a checkpoint that does not exist": (["--ckpt_path=runs/a.ckpt"], "runs/a.ckpt cannot be used"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_what_to_do(name, here, capsys):
    arguments, answer = MISTAKES[name]
    if arguments[0].startswith("--") and name != "no command":
        arguments = [
            "fit",
            "--config=configs/grpo.yaml",
            "--trainer.logger=false",
            "--trainer.accelerator=cpu",
            *arguments,
        ]
    with pytest.raises(ConfigError) as caught:
        main(arguments)
    message = str(caught.value)
    assert answer in message and len(message) < 800, message
    assert "\n" not in message
    assert "rollout 1:" not in capsys.readouterr().out and not list(here.glob("runs/*/checkpoints/*"))


def test_the_error_is_one_line_on_the_terminal(here):
    command = [sys.executable, str(ROOT / "main.py"), "fit", "--config=configs/grpo.yaml", "--group_size=4"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert (
        ended.stderr
        == "error: unknown option --group_size on the command line. Did you mean --model.batch.group_size?\n"
    )


def test_the_page_lists_them():
    page = (ROOT / "docs/howto/mistakes.md").read_text()
    listed = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:]
    assert listed == list(MISTAKES)
