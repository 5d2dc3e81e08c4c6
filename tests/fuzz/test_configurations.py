"""Any change of a shipped configuration is accepted, or refused with a message: ConfigError, or the parser's status 2.

It never ends in a traceback or hangs.
"""

import copy
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from main import CLI, main
from support.errors import ConfigError
from tests.fuzz.shares import cases

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "grpo",
    "prorl",
    "adapt_think",
    "auto_think",
    "hc_rlhf",
    "sft",
    "reward_model",
    "dpo",
    "distill",
    "authorship",
    "t_vec",
    "curriculum",
    "saturn",
    "think_json",
]
CONFIGS = {name: yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()) for name in NAMES}
VALUES = [
    None,
    True,
    -1,
    0,
    1,
    1.5,
    10**30,
    -(10**30),
    math.nan,
    math.inf,
    "",
    "x",
    "1e400",
    "lightning_modules.GRPO",
    "rewards.ExactAnswer",
    "datamodules.ArithmeticPrompts",
    "no.such.Class",
    "os.system",
    "objectives",
    "../../etc/passwd",
    "none.jsonl",
    [],
    [1],
    {},
    {"class_path": "rewards.Format"},
    {"class_path": "math.inf"},
    {"class_path": "rewards.Format", "init_args": {"pattern": "("}},
    [[]],
    "\x00",
    "💥",
    "${oc.env:HOME}",
    "!!python/object/apply:os.getcwd []",
]


def places(node, path=()):
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path + (key,) for key, _ in inner] + [place for key, item in inner for place in places(item, path + (key,))]


@st.composite
def changed(draw):
    config = copy.deepcopy(CONFIGS[draw(st.sampled_from(NAMES))])
    for _ in range(draw(st.integers(1, 2))):
        if not (left := places(config)):  # everything was removed
            break
        *parents, key = draw(st.sampled_from(left))
        node = config
        for parent in parents:
            node = node[parent]
        how = draw(st.sampled_from(["value", "value", "misspelt", "removed", "nested"]))
        if how == "value":
            node[key] = draw(st.sampled_from(VALUES))
        elif how == "misspelt" and isinstance(key, str):
            node[key[:-1] + draw(st.sampled_from(["", "x", "_", "é", " "]))] = node.pop(key)
        elif how == "removed":
            del node[key]
        else:
            node[key] = {"deep": [node[key]]}
    return config


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Everything but the run itself: parsing, the checks, and making trainer, module and data module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CLI, "_run_subcommand", lambda self, subcommand: None)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    return tmp_path


@cases("configurations")
@given(config=changed())
def test_changed_configurations(here, capsys, config):
    file = here / "changed.yaml"
    file.write_text(yaml.safe_dump(config, allow_unicode=True))
    try:
        main(["fit", f"--config={file}", "--trainer.logger=false"])
    except ConfigError as error:
        assert len(str(error)) > 20
    except SystemExit as stopped:
        message = capsys.readouterr().err
        assert stopped.code == 2 and "error" in message.lower() and "Traceback" not in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "{",
        "a: [",
        "\x00",
        "model: *unknown",
        "? {}\n: x",
        "!!python/object/apply:os.mkdir [executed]",
        "&a [*a]",
        "---\na: 1\n---\nb: 2\n",
        'trainer: "\\0"',
        'model: "\\0"',
    ],
)
def test_files_that_are_no_configuration(here, capsys, text):
    (here / "bad.yaml").write_text(text)
    with pytest.raises((ConfigError, SystemExit)):
        main(["fit", f"--config={here}/bad.yaml", "--trainer.logger=false"])
    assert not (here / "executed").exists() and "Traceback" not in capsys.readouterr().err
