"""rStar-Coder's data step among hostile programs, and killed: nothing outside the sandbox changes, nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pyarrow.parquet
import pytest

from assets.many_inputs import RunLimits
from assets.problem_inputs import InputPlan, make_inputs
from assets.verified_problem import run_candidates
from rewards import sandbox
from rewards.sandbox import Limits
from tests.helpers import ROOT
from tests.rewards.hostile import PROGRAMS, SECRET, Arena, left_behind

SMALL = {"cpu_s": 2, "memory_mb": 128, "processes": 6, "output_kb": 32, "file_mb": 4, "disk_mb": 8}
LIMITS = RunLimits(Limits(wall_s=1.0, **SMALL), total_s=4.0)
FEW = {"kills everybody", "writes to any file descriptor", "reads the environment", "output from a child"}
DOOR = "\ndef f(*values): return 'x'\ngenerate = f\ndef valid(text): return True\n"


def as_candidate(source):
    """Its outputs as a program that reads and prints, and as a function; the first inputs are as in the arena."""
    problems = [{"prompt": "p"}, {"prompt": "p", "entry_point": "f"}]
    inputs = [["one line\n", "1"], [[1], [2]]]
    made = [
        run_candidates(problem, [source + DOOR], each, LIMITS) for problem, each in zip(problems, inputs, strict=True)
    ]
    return [one.vector for (one,) in made]


def as_generator(source):
    plan = InputPlan(largest_exponent=1, per_scale=1, max_kb=32)
    return make_inputs({"prompt": "p"}, source + DOOR, plan, LIMITS).values


def contained(names):
    """Run programs in both roles, one at a time; returns what they printed."""
    mark, before = f"mark-{uuid.uuid4().hex}", threading.active_count()
    arena = Arena()
    sandbox.START += f" # {mark}"
    try:
        head = arena.names(full=True)
        told = {}
        for name in names:
            told[name] = [*as_candidate(head + PROGRAMS[name][0]), as_generator(head + PROGRAMS[name][0])]
            assert arena.harm() == [], name
        assert left_behind(mark) == [] and threading.active_count() == before
    finally:
        sandbox.START = sandbox.START.split(" #")[0]
        arena.close()
    return told


@pytest.mark.parametrize("names", [FEW, pytest.param(PROGRAMS.keys(), marks=pytest.mark.long)], ids=["few", "all"])
def test_hostile_candidates_and_generators_are_contained(names):
    for name, told in contained(names).items():
        assert "HARM" not in str(told) and SECRET not in str(told), name


@pytest.mark.long
def test_a_killed_run_goes_on_with_what_was_finished(tmp_path):
    command = [sys.executable, str(ROOT / "assets/rstar_coder.py"), f"--config={ROOT}/configs/rstar_coder/1_data.yaml"]
    command += ["--data.init_args.train_size=30", "--workers=1", f"--out={tmp_path}/data.parquet"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parts = tmp_path / "data.parts/problems"
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    while process.poll() is None and len(list(parts.glob("*.json"))) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert 3 <= len(finished) < 30
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished and len(list(parts.glob("*.json"))) == 30
    rows = pyarrow.parquet.read_table(tmp_path / "data.parquet").to_pylist()
    report = json.loads((tmp_path / "data.report.json").read_text())
    assert report["stages"][0]["in"] == 30 and report["stages"][-1]["out"] == len(rows)
