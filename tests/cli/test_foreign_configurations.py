"""A configuration that came with a checkpoint: it runs no code and lifts no protection unless the user names it."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from cli.yaml_files import read_yaml
from main import CLI, main
from support.errors import ConfigError
from tests.support.test_checkpoints_as_data import Payload
from tests.test_cli import short


@pytest.fixture
def run(tmp_path, monkeypatch, reasoner):
    """The configuration and the checkpoint of a run of this installation."""
    monkeypatch.chdir(tmp_path)
    main(["fit", *short(reasoner, "--trainer.logger=false", "--trainer.max_steps=1", "--trainer.limit_val_batches=0")])
    return Path("runs/local/config_fit.yaml"), Path("runs/local/checkpoints/rollout_000001.ckpt")


def test_a_configuration_from_elsewhere_is_shown_and_not_used(run, monkeypatch):
    config, checkpoint = run
    monkeypatch.setattr(CLI, "_run_subcommand", lambda self, subcommand: None)
    main(["predict", f"--ckpt_path={checkpoint}", "--trainer.logger=false"])  # this installation's own is used
    Path("evil.py").write_text(f"import os\nos.mkdir('{Path.cwd()}/executed')\nfrom rewards import Format as Reward\n")
    monkeypatch.syspath_prepend(Path.cwd())
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"]["rewards"] = [{"class_path": "evil.Reward"}]
    config.write_text(yaml.safe_dump(content))
    for path in (str(checkpoint), "last"):
        with pytest.raises(ConfigError, match=r"did not write .*config_fit.yaml.*'evil.Reward'.*--config .*config_fit"):
            main(["predict", f"--ckpt_path={path}", "--trainer.logger=false"])
    assert not Path("executed").exists()
    main(["predict", f"--config={config}", f"--ckpt_path={checkpoint}", "--trainer.logger=false"])
    assert Path("executed").exists(), "what the user names is used"
    config.write_text(config.read_text() + "\n# read\n")
    with pytest.raises(ConfigError, match="did not write"):
        main(["predict", f"--ckpt_path={checkpoint}"])


def test_only_the_command_line_lifts_the_protection_of_checkpoints(run):
    config, checkpoint = run
    saved = torch.load(checkpoint, weights_only=True)
    torch.save(saved | {"more": Payload("executed")}, checkpoint)
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(content | {"weights_only": False}))
    arguments = ["validate", f"--config={config}", f"--ckpt_path={checkpoint}", "--trainer.logger=false"]
    with pytest.raises(ConfigError, match="cannot be read as plain data.*--weights_only false"):
        main(arguments)
    assert not Path("executed").exists()
    main([*arguments, "--weights_only=false", "--trainer.limit_val_batches=0"])
    assert Path("executed").exists(), "otherwise this test would show nothing"


def bomb(levels, width=10):
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, reason",
    [
        (bomb(9), "stand for more than 100,000 values"),
        ("a: &a [*a]", "stand for more than 100,000 values"),
        ("a: &a {b: *a}", "stand for more than 100,000 values"),
        ("[" * 3000, "nested too deeply|expected"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: 1\na: 2", "occurs twice"),
        ("? [a, b]\n: 1\n? [a, b]\n: 2", "unhashable"),
        ("!!python/object/apply:os.mkdir [executed]", "could not determine a constructor"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_files_that_are_too_large_or_wrong_are_refused(tmp_path, text, reason):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"config.yaml is not valid YAML.*({reason})"):
        read_yaml(path)
    path.write_text(bomb(3))
    assert len(read_yaml(path)["a2"]) == 10


def test_a_broken_neighbour_is_passed_over_with_a_line(run, capsys):
    for name, text in {"a": "[" * 3000, "b": bomb(9), "c": "\x00", "d": "model: 5", "e": "a: 2001-99-99"}.items():
        Path(f"runs/{name}").mkdir()
        Path(f"runs/{name}/config_fit.yaml").write_text(text)
    Path("runs/f/config_fit.yaml").mkdir(parents=True)
    main(["validate", "--ckpt_path=last", "--trainer.logger=false", "--trainer.limit_val_batches=0"])
    said = capsys.readouterr().out
    assert "Last checkpoint of lightning_modules.GRPO: runs/local/checkpoints/rollout_000001.ckpt" in said
    assert all(f"runs/{name}/config_fit.yaml cannot be read" in said for name in "abcdef")
    shutil.rmtree("runs/local")
    with pytest.raises(ConfigError, match="there is no run under runs"):
        main(["validate", "--ckpt_path=last"])
