import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_script_in_the_documentation_runs(tmp_path, monkeypatch, capsys, reasoner, assistant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    spec = importlib.util.spec_from_file_location("own_script", ROOT / "docs/examples/own_script.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(rollouts=2, reasoner=reasoner, assistant=assistant, pairs=200)
    out = capsys.readouterr().out
    assert "SAFE: upper bound" in out or "NO SOLUTION FOUND: upper bound" in out
