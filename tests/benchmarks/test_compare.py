"""The comparison: intervals against printed tables, the front against its definition, a self-contained page, and real
runs that are not repeated."""

import itertools
import math
import os
import random
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import mlflow
import pytest
import yaml

from benchmarks.compare.__main__ import task_facts
from benchmarks.compare.intervals import clear_best, difference, front, interval
from benchmarks.compare.methods import HELP_DESK, LEFT_OUT, METHODS, OBJECTIVES, arguments, chosen
from benchmarks.compare.report import Report
from benchmarks.compare.trials import PARENT, Comparison, Result, digest
from main import main as command_line
from support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
EVERY = METHODS | OBJECTIVES | {"hc_rlhf": HELP_DESK}


def test_intervals_are_those_of_students_table():
    # Printed t(0.975) for 2, 4, 9 degrees of freedom: 4.303, 2.776, 2.262; the deviations below are 1 by construction.
    for count, quantile in ((3, 4.303), (5, 2.776), (10, 2.262)):
        spread = math.sqrt((count - 1) / 2)
        found = interval([10 + spread, 10 - spread, *[10.0] * (count - 2)])
        assert found.mean == pytest.approx(10) and found.half == pytest.approx(quantile / math.sqrt(count), rel=2e-4)
    assert math.isnan(interval([0.5]).half) and not interval([0.5]).excludes_zero and interval([math.nan]) is None


def test_what_seeds_share_cancels_in_a_difference():
    ours, theirs = {0: 0.9, 1: 0.5, 2: 0.7}, {0: 0.8, 1: 0.4, 2: 0.6, 3: 0.1}
    found = difference(ours, theirs)
    assert found.mean == pytest.approx(0.1) and found.half == pytest.approx(0, abs=1e-9) and found.seeds == 3
    assert not interval(list(ours.values())).low > interval(list(theirs.values())).high, (
        "the intervals of the methods themselves overlap"
    )


def test_the_best_is_marked_only_where_it_stands_apart():
    apart = {"a": {0: 0.9, 1: 0.91, 2: 0.92}, "b": {0: 0.5, 1: 0.51, 2: 0.51}, "c": {0: 0.1, 1: 0.1, 2: 0.12}}
    assert clear_best(apart) == "a" and clear_best(apart, larger=False) == "c"
    assert clear_best(apart | {"d": {0: 0.8, 1: 0.99, 2: 0.7}}) is None, "d may be as good"
    assert clear_best({"a": {0: 1.0}, "b": {0: 0.0}}) is None, "one seed shows nothing"


def test_the_front_is_what_nothing_dominates():
    rng = random.Random(0)
    for _ in range(200):
        points = {str(n): (rng.random(), rng.random()) for n in range(rng.randint(1, 12))}
        alone = {
            name
            for name, (cost, value) in points.items()
            if not any(c <= cost and v >= value for other, (c, v) in points.items() if other != name)
        }
        found = front(points)
        assert set(found) == alone
        assert all(points[a][0] < points[b][0] for a, b in itertools.pairwise(found))


def test_every_configuration_is_compared_or_left_out_with_a_reason():
    compared = {name for method in EVERY.values() for name in method.configs}
    listed = compared | {name for paper in LEFT_OUT for name in paper.configs}
    # Neither is a method: the common task, and a start that other methods train on.
    others = {"compare", "cold_start_smollm2"}
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} - others == {n for n in listed if "/" not in n}
    assert {f"objectives/{path.stem}" for path in (ROOT / "configs/objectives").glob("*.yaml")} - compared == {
        "objectives/grpo"
    }


@pytest.mark.parametrize("name", EVERY)
def test_the_command_lines_are_understood_and_share_their_task(name, monkeypatch, capsys):
    """`plan` puts the whole run together without loading weights."""
    monkeypatch.chdir(ROOT)
    cli = command_line(["plan", *arguments(EVERY[name], 3, 5000)])
    assert cli.config["plan"]["seed_everything"] == 3
    (budget,) = [c.tokens for c in cli.trainer.callbacks if type(c).__name__ == "TokenBudget"]
    if name == "hc_rlhf":
        assert budget == 1250 and cli.model.test_params.skip
        return
    assert budget == 5000 and cli.model.policy_params.model == "assets/tiny_switcher"
    data, model = cli.datamodule, cli.model
    assert (type(data).__name__, data.seed, data.train_size, data.val_size) == ("ArithmeticPrompts", 0, 64, 140)
    assert (model.sampling.max_new_tokens, model.evaluation.samples, model.evaluation.pass_ks) == (72, 4, {"pass@4": 4})
    assert model.batch.prompts_per_rollout * model.batch.group_size == 64
    assert any(reward.is_correctness for reward in model.rewards)


class Links(HTMLParser):
    """Collects the addresses that a page loads and those that it links to."""

    def __init__(self):
        super().__init__()
        self.loads, self.links, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loads += [given[name] for name in ("src", "xlink:href", "data") if given.get(name, "#")[:1] != "#"]
        self.links += [given["href"]] if tag == "a" else []
        if tag == "link" or tag == "script":
            self.loads.append(tag)


def fake(seed, right, length, tokens=900.0):
    values = {"val/pass1": right, "val/pass4": 0.9, "val/length": length, "val/reward": right, "train/tokens": tokens}
    first = {"val/pass1": 0.5, "val/pass4": 0.8, "val/length": 49.0}
    curves = dict.fromkeys(("val/pass1", "val/reward"), [(0.0, 0.5), (tokens, right)])
    return Result(f"run{seed}", seed, 12.0, values, first, curves, 3, dict.fromkeys(curves, [0.0, 9.0]))


def test_the_report_needs_nothing_else_and_marks_only_what_is_supported():
    found = {
        "grpo": [fake(0, 0.70, 49.0), fake(1, 0.72, 49.1), fake(2, 0.71, 48.9)],
        "laser": [fake(0, 0.70, 30.0), fake(1, 0.60, 30.1), fake(2, 0.50, 30.2)],
        "hapo": [],
    }
    methods = {name: METHODS[name] for name in found}
    page = Report(
        found,
        methods,
        [fake(0, 0.1, 5.0)],
        "http://127.0.0.1:5000",
        "7",
        {"seeds": "3"},
        ["hapo, seed 0 (see a <log>)"],
    ).html()
    unjudged = fake(0, math.nan, 40.0)  # its rewards do not say what is right
    for metric in ("val/pass1", "val/pass4"):
        del unjudged.values[metric], unjudged.first[metric]
    unjudged.curves.clear(), unjudged.clock.clear()
    report = ({"grpo": [unjudged]}, methods, [], "http://127.0.0.1:5000", "7", {}, [])
    assert Report(*report).html().count("No method has a pass@1.") == 3 and "nan" not in Report(*report).markdown()
    assert "No method" not in Report({"grpo": found["grpo"], "laser": [unjudged]}, *report[1:]).html()
    links = Links()
    links.feed(page)
    assert links.loads == [] and "url(http" not in page and "@import" not in page
    assert "http://127.0.0.1:5000/#/experiments/7/runs/run1" in links.links and any(
        "compare-runs?runs=" in link for link in links.links
    )
    assert "a &lt;log&gt;" in page
    (grpo,) = [row for row in page.split("<tr") if ">GRPO <" in row]
    (laser,) = [row for row in page.split("<tr") if ">LASER <" in row]
    assert page.index(">GRPO <") < page.index(">LASER <"), "the most accurate first"
    assert 'class="up">0.710' in grpo, (
        "all seeds above their start by much the same, but not apart from every other method"
    )
    assert 'class="">0.600' in laser and 'class="best">30.1' in laser


@pytest.mark.long
def test_runs_are_made_once_and_a_killed_one_again(tmp_path, monkeypatch, capfd):
    for name in ("assets", "configs", "main.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    given = ["--methods=[grpo]", "--seeds=1", "--tokens=4000", "--hc_rlhf=false"]

    def compared(*more):
        """The command in this process; the run that it makes has one of its own."""
        monkeypatch.setattr(sys, "argv", ["compare", *given, *more])
        runpy.run_module("benchmarks.compare", run_name="__main__")
        return capfd.readouterr().out

    store = os.environ["MLFLOW_TRACKING_URI"]
    client = mlflow.MlflowClient(store)
    comparison = Comparison(store, 4000, Path("runs/compare"))
    settings = digest(arguments(METHODS["grpo"], 0, 4000))
    tags = {PARENT: comparison.parent, "compare.method": "grpo", "compare.settings": settings}
    experiment = client.get_experiment_by_name("compare").experiment_id
    killed = client.create_run(experiment, tags=tags).info.run_id  # it is closed, and made again
    assert "1 runs, of which 0 were made before" in compared()
    assert client.get_run(killed).info.status == "KILLED"
    assert "1 runs, of which 1 were made before" in compared()
    runs = [run for run in client.search_runs([experiment]) if run.info.run_id != killed]
    parent, child = sorted(runs, key=lambda run: PARENT in run.data.tags)
    assert tags.items() <= child.data.tags.items() and child.info.status == "FINISHED"
    assert child.data.tags[PARENT] == parent.info.run_id and child.info.run_name == "grpo, seed 0"
    assert parent.data.metrics["pass1/grpo"] == child.data.metrics["val/pass1"]
    assert [item.path for item in client.list_artifacts(parent.info.run_id)] == ["report.html"]
    assert f"| GRPO | {child.data.metrics['val/pass1']:.3f} |" in parent.data.tags["mlflow.note.content"]
    assert comparison.parent == parent.info.run_id
    result = comparison.result(child, 0)
    rollouts = client.get_metric_history(child.info.run_id, "train/length")
    assert [tokens for tokens, _ in result.curves["val/pass1"]] == [
        0,
        pytest.approx(64 * sum(point.value for point in rollouts)),
    ]
    with pytest.raises(SystemExit) as ended:
        compared("--methods=[grop]")
    assert ended.value.code == 2 and "--methods has 'grop'" in capfd.readouterr().err


def test_only_what_was_named_is_compared():
    everything = {*METHODS, *OBJECTIVES, "hc_rlhf"}
    assert set(chosen(None)) == {*METHODS, "hc_rlhf"} and set(chosen(None, objectives=True)) == everything
    assert list(chosen(["laser", "grpo", "laser"])) == ["laser", "grpo"] and list(chosen(["hc_rlhf"])) == ["hc_rlhf"]
    assert set(chosen(None, hc_rlhf=False)) == {*METHODS}


def test_any_configuration_file_is_a_method(tmp_path, monkeypatch, capsys):
    """One with a module and its rewards as it stands, others over GRPO's or a named method's.

    Files of one name in two folders are two methods.
    """
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "mine.yaml").write_text(f"model: {{init_args: {{kl: {{coefficient: 0.{len(folder)}}}}}}}")
    Path("gmpo.yaml").write_text(
        "# GMPO (arXiv 2507.20673): geometric means.\nmodel: {init_args: {loss: objectives.SequenceSurrogate}}"
    )
    Path("other.yaml").write_text("model: {class_path: lightning_modules.SGRPO, init_args: {rewards: []}}")
    Path("module.yaml").write_text("model: {class_path: lightning_modules.SGRPO}")
    Path("grpo.yaml").write_text("trainer: {max_steps: 3}")
    files = ["a/mine.yaml", "b/mine.yaml", "gmpo.yaml", "other.yaml", "grpo.yaml"]
    methods = chosen(["grpo", *files])
    assert list(methods) == ["grpo", "a_mine_yaml", "b_mine_yaml", "gmpo", "other", "grpo_yaml"]
    assert methods["gmpo"].title == "GMPO" and methods["other"].title == "other"
    assert methods["gmpo"].configs == ("grpo", "gmpo.yaml") and methods["other"].configs == ("other.yaml",)
    over = chosen(["laser+gmpo.yaml", "module.yaml", "other.yaml+module.yaml"])
    assert [method.configs for method in over.values()] == [
        ("laser", "gmpo.yaml"), ("grpo", "module.yaml"), ("other.yaml", "module.yaml")
    ]  # fmt: skip
    assert over["laser+gmpo"].comparison == METHODS["laser"].comparison and over["laser+gmpo"].arxiv == "2507.20673"
    assert methods["grpo"] is METHODS["grpo"] and methods["grpo_yaml"].configs == ("grpo", "grpo.yaml")
    cli = command_line(["plan", *arguments(methods["gmpo"], 3, 5000)])
    assert type(cli.model.policy_loss).__name__ == "SequenceSurrogate" and cli.datamodule.train_size == 64
    for wrong, message in {"absent.yaml": "does not exist", "empty.yaml": "not a configuration"}.items():
        Path("empty.yaml").touch()
        with pytest.raises(ConfigError, match=message):
            chosen([wrong])
    with pytest.raises(ConfigError, match="'grop', which is neither a method nor a configuration file"):
        chosen(["grop"])


def test_the_report_says_what_the_task_says():
    task = yaml.safe_load((ROOT / "configs/compare.yaml").read_text())
    assert task_facts(task)["problems"] == "ArithmeticPrompts, 64 for training, 140 held out, 4 samples each"
    task["data"] = {"class_path": "mine.Prompts", "init_args": {"val_size": 9}}
    task["model"]["init_args"]["evaluation"]["samples"] = 2
    assert task_facts(task)["problems"] == "Prompts, 9 held out, 2 samples each"


def test_a_digest_covers_code_and_data_from_elsewhere(tmp_path, monkeypatch):
    """Classes that a configuration names, what they import, and files by a bare name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine").mkdir()
    Path("mine/__init__.py").touch()
    Path("mine/loss.py").write_text("import torch\nfrom my_helper import half")
    Path("my_helper.py").write_text("half = 0.5")
    Path("rows.jsonl").write_text("{}")
    Path("a.yaml").write_text("model: {loss: {class_path: mine.loss.Loss}}\ndata: {source: rows.jsonl}")
    command = ["--config=a.yaml"]
    digests = [digest(command)]
    for path in ("mine/loss.py", "my_helper.py", "rows.jsonl"):
        with open(path, "a") as file:
            file.write("\n")
        digests.append(digest(command))
    assert len(set(digests)) == 4 and digest(command) == digests[-1]
    Path("my_unused.py").touch()
    Path("a.yaml").rename("b.yaml")
    assert digest(["--config=b.yaml"]) == digests[-1], "neither another module nor the file's name acts"


def test_a_digest_covers_what_decides_a_run(tmp_path, monkeypatch):
    """The arguments, the contents of configurations, of data and models that they name, and the source code."""
    (tmp_path / "rows.jsonl").write_text("{}")
    config = tmp_path / "a.yaml"
    config.write_text(f"data: {{source: {tmp_path}/rows.jsonl}}")
    command = [f"--config={config}", "--seed_everything=0"]
    digests = [digest(command), digest([command[0], "--seed_everything=1"])]
    config.write_text(config.read_text() + " # a comment")
    assert digest(command) == digests[0], "a comment changes nothing"
    (tmp_path / "rows.jsonl").write_text("{} ")
    digests.append(digest(command))
    config.write_text("data: {}")
    digests.append(digest(command))
    monkeypatch.setattr("benchmarks.compare.trials._source_version", lambda: "another")
    assert len({*digests, digest(command)}) == 5


def test_a_digest_stays_a_text_on_a_command_line():
    """About one in two hundred digests has digits and one e, which YAML takes for a number."""
    found = [digest([str(n)]) for n in range(3000)]
    assert all(isinstance(yaml.safe_load(text), str) for text in found) and len(set(found)) == 3000
    assert not all(isinstance(yaml.safe_load(text[1:]), str) for text in found), "without the letter some are numbers"
