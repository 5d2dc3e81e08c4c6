"""`python main.py chat`: one answer for scripts, a conversation, another policy beside it, and its refusals."""

import io
import re
import sys

import pytest

from cli.chat import folded
from main import main
from support.errors import ConfigError
from tests.callbacks.test_summary import run as short_run


@pytest.fixture
def trained(reasoner, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export = '{"class_path": "callbacks.ExportPolicy", "init_args": {"folder": "exported"}}'
    short_run(reasoner, "--trainer.max_steps=1", "--trainer.logger=false", f"--trainer.callbacks+={export}")
    capsys.readouterr()


def said_by(capsys, *words):
    main(["chat", "--trainer.accelerator=cpu", *words])
    return capsys.readouterr().out


def test_one_answer_for_scripts_is_all_that_is_printed(trained, capsys):
    settings = ("--temperature=0", "--max_new_tokens=12")
    answer = said_by(capsys, "--ckpt_path=last", "--prompt=1+1=?", *settings)
    assert answer.count("\n") == 1, answer
    beside = said_by(capsys, "--ckpt_path=last", "--prompt=1+1=?", "--against=start", "--show_thinking=true", *settings)
    assert re.fullmatch(r"policy: (.*)\nstart: (.*)\n", beside, re.S), beside
    assert said_by(capsys, "--ckpt_path=exported", "--prompt=1+1=?", *settings) == answer, "the exported policy is it"


def test_a_conversation(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1+1=?\n/think\n\n/nonsense\n/new\n2+2=?\n"))
    said = said_by(capsys, "--ckpt_path=last", "--max_new_tokens=5")
    assert len(re.findall(r"policy> .+\n  \[\d tokens.*tokens per second", said)) == 2, said
    assert "policy thought: " in said and "/nonsense is not a command" in said


def test_a_conversation_remembers_and_says_when_the_context_is_full(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1+1=?\n" * 80))
    said = said_by(capsys, "--ckpt_path=last", "--max_new_tokens=5")
    assert "the model's context is full; say /new" in said


@pytest.mark.parametrize(
    "words, message",
    [
        (["--ckpt_path=nowhere.ckpt"], "does not exist"),
        (["--ckpt_path=last"], "there is no run under runs"),
        (
            ["--config=configs/reward_model.yaml", "--model.policy.model={reasoner}"],
            "scores, which cannot be talked to",
        ),
        (["--config=configs/grpo.yaml", "--ckpt_path={shards}", "--model.policy.model={reasoner}"], "shards|cannot be"),
    ],
)
def test_what_cannot_be_talked_to(reasoner, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    with pytest.raises(ConfigError, match=message):
        main(["chat", *(word.format(reasoner=reasoner, shards=tmp_path / "shards") for word in words), "--prompt=x"])


def test_a_policy_of_supervised_fine_tuning_answers(reasoner, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ("--config=configs/sft.yaml", f"--model.policy.model={reasoner}", "--max_new_tokens=4")
    assert said_by(capsys, *words, "--prompt=1+1=?").count("\n") >= 1


@pytest.mark.parametrize(
    "completion, opened, expected",
    [
        ("42", False, ("", "42")),
        ("a</think>42", True, ("a", "42")),
        ("a</think>42", False, ("a", "42")),
        ("<think>a b</think> 42\n", False, ("a b", "42")),
        ("endless", True, ("endless", "")),
        ("<think>endless", False, ("endless", "")),
        ("</think>42", True, ("", "42")),
        ("a</think>b</think>c", True, ("a", "b</think>c")),
    ],
)
def test_thinking_is_folded(completion, opened, expected):
    assert folded(completion, opened) == expected
