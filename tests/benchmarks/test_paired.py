"""Two policies prompt by prompt: means over completions, pairs by id, and an interval that covers as it says."""

import csv
import json

import numpy
import pytest

from benchmarks.paired import by_prompt, difference, main, predictions
from support.errors import ConfigError


def written(path, values):
    """A file of predictions: id -> rewards of its completions."""
    rows = [
        {"id": name, "reward/exact_answer": reward, "length": 5, "reward/other": None}
        for name, rewards in values.items()
        for reward in rewards
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_are_paired_by_id_and_completions_averaged_first(tmp_path, capsys):
    a = written(tmp_path / "a.jsonl", {"x": [0, 1], "y": [1, 1], "z": [0, 0], "only in a": [1]})
    b = written(tmp_path / "b.jsonl", {"z": [1, 0], "x": [1, 1], "y": [0, 1]})
    assert by_prompt(a)["x"] == {"reward/exact_answer": 0.5, "length": 5.0}
    main(str(a), str(b), out=str(tmp_path / "gaps.csv"))
    told = capsys.readouterr().out
    assert "3 prompts in both, 1 in one of the two left out" in told
    (row,) = [line for line in told.splitlines() if "exact_answer" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["0.500", "0.667", "+0.167"] and cells[5] == "2 / 0 / 1"
    (row,) = [line for line in told.splitlines() if line.startswith("| length")]
    assert "| +0.000 | +0.000 to +0.000 | 0 / 3 / 0 |" in row
    gaps = {line["id"]: float(line["B - A"]) for line in csv.DictReader((tmp_path / "gaps.csv").open())
            if line["metric"] == "reward/exact_answer"}  # fmt: skip
    assert gaps == {"x": 0.5, "y": -0.5, "z": 0.5}


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    rng, covered = numpy.random.default_rng(0), 0
    for seed in range(100):
        gaps = rng.choice([-0.5, 0.0, 0.5, 1.0], p=[0.2, 0.4, 0.3, 0.1], size=60)  # mean 0.15
        _, low, high = difference([(0.0, gap) for gap in gaps], 1000, seed)
        covered += low <= 0.15 <= high
    assert 88 <= covered <= 99  # 95 expected; the binomial's central 99 % is 89 to 99


def test_what_cannot_be_paired_is_refused(tmp_path):
    a, b = written(tmp_path / "a.jsonl", {"x": [1], "y": [0]}), written(tmp_path / "b.jsonl", {"z": [1]})
    with pytest.raises(ConfigError, match="share 0 prompts"):
        main(str(a), str(b))
    (tmp_path / "broken.jsonl").write_text('{"id": "x", "length": 3}\nno\n')
    with pytest.raises(ConfigError, match=r"broken\.jsonl:2 is not a prediction"):
        main(str(a), str(tmp_path / "broken.jsonl"))
    with pytest.raises(ConfigError, match="does not exist"):
        predictions(tmp_path / "absent.ckpt")
    with pytest.raises(ConfigError, match="neither a .jsonl nor a .ckpt"):
        predictions(tmp_path)
    with pytest.raises(ConfigError, match="at least 1000"):
        main(str(a), str(a), draws=10)
