"""Stores that cannot be opened, and metric names that come from data, end in one paragraph or in a valid name."""

import json
import os
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from cli.application import disk_error
from cli.inspect import main as inspect_main
from support.errors import ConfigError
from tracking import PatientMLFlowLogger
from tracking.logger import LONGEST_NAME, metric_name

HOSTILE = ["..", ".", "", "../../x", "/etc", "a//b", "a/../b", "x" * 5000, "数学", "\n", "a/./b", " ", "a/", "\x1b[2J"]


def taken(name):
    """The name that reaches MLflow: Lightning leaves out other characters."""
    return re.sub("[^a-zA-Z0-9_/. -]+", "", metric_name(name))


@pytest.mark.parametrize("task", HOSTILE)
def test_mlflow_takes_a_metric_of_any_task(task):
    for name in (f"val/pass@1/{task}", f"val/pass@1/{task}/low", f"train/reward/{task}"):
        _validate_metric_name(taken(name))
        assert len(taken(name)) <= LONGEST_NAME


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.text(max_size=300), st.text(max_size=300))
def test_names_stay_valid_and_different(first, second):
    _validate_metric_name(taken(f"val/{first}"))
    if first.isascii() and re.fullmatch(r"[\w-]{1,60}", first):
        assert metric_name(f"val/pass@1/{first}") == f"val/pass@1/{first}", "usual names stay as they are"
    if not first.isascii() and not second.isascii() and first != second:
        assert taken(f"val/{first}") != taken(f"val/{second}")


@pytest.mark.parametrize("place", ["text", "folder", "missing/folder", "full"])
def test_a_store_that_cannot_be_opened_is_one_paragraph_at_once(tmp_path, place):
    (tmp_path / "text").write_text("no data base" * 100)
    (tmp_path / "folder").mkdir()
    path = "/dev/full" if place == "full" else f"{tmp_path}/{place}"
    started = time.monotonic()
    with pytest.raises(
        ConfigError, match=f"MLflow's store sqlite:///{path} cannot be opened: .*--trainer.logger false"
    ):
        PatientMLFlowLogger(tracking_uri=f"sqlite:///{path}")
    assert time.monotonic() - started < 20


def test_a_file_that_cannot_be_written_is_one_paragraph(tmp_path):
    with pytest.raises(OSError) as raised:
        open(tmp_path / ("x" * 5000), "w")
    assert "cannot be written: File name too long" in str(disk_error(raised.value))
    assert disk_error(FileNotFoundError(2, "No such file", "x")) is None and disk_error(OSError("no number")) is None


GOOD = {
    "tokens": ["a", "b"], "logprobs": [-1.0, -2.0], "prompt": "?", "length": 2, "finish": "end", "id": "1",
    "advantage": 0.5, "reward/x": 1.0,
}  # fmt: skip
WRONG = [
    b"", b"{", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 100_000, b"PAR1", b'{"tokens": []}',
    *(json.dumps(GOOD | change).encode() for change in (
        {"tokens": "ab"}, {"tokens": [1, 2]}, {"logprobs": [1.0]}, {"logprobs": ["x", "y"]}, {"logprobs": 5},
        {"logprobs": [True, False]}, {"reference_logprobs": [0.0]}, {"reference_logprobs": "x"},
        {"advantage": "x"}, {"advantage": [1]}, {"reward/x": "high"},
        {"logprobs": [10**400, 1]}, {"reward/x": 10**400}, {"advantage": {}},
    )),
    *(
        json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()
        for name in ("tokens", "length", "finish", "id", "prompt")
    ),
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_inspection_refuses_files_of_others(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    for content in WRONG:
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"file\.\w+ holds no completions with tokens and log-probs"):
            inspect_main([str(path)])
    assert os.listdir(tmp_path) == [path.name] or not path.with_suffix(".html").exists()


def test_inspection_shows_what_is_no_number_and_escapes_texts(tmp_path):
    path = tmp_path / "file.jsonl"
    rows = [
        GOOD
        | {"tokens": ["<script>", "\x1b"], "prompt": "<img>", "id": "<b>", "finish": "<i>", "advantage": float("nan")},
        GOOD,
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    page = inspect_main([str(path)]).read_text()
    assert not re.search("<script>|<img>|<b>|<i>", page)
