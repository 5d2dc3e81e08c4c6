"""Every overlay in configs/scale/ behind a method's configuration parses, and all but the trainer is built from it."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.strategies import ModelParallelStrategy

import main

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = sorted(path.stem for path in (ROOT / "configs/scale").glob("*.yaml"))
STACKS = [
    *[("grpo", overlay) for overlay in OVERLAYS],
    ("hc_rlhf", "one_gpu_lora"),
    ("prorl", "one_gpu_full"),
    ("adapt_think", "slurm_fsdp2"),
    ("auto_think", "vllm_server"),
    ("sft", "eight_gpus_fsdp2"),
]


class Built(Exception):
    pass


def built(monkeypatch, *files):
    """The parts that a command line builds before the trainer, for which this machine may lack the GPUs."""

    def stop(cli, **given):
        raise Built(cli.config_init[cli.subcommand])

    monkeypatch.setattr(main.CLI, "instantiate_trainer", stop)
    with pytest.raises(Built) as made:
        main.main(["fit", *(f"--config={ROOT}/configs/{name}.yaml" for name in files)])
    return made.value.args[0]


def says(given, made):
    """Whether an overlay's values arrived: mappings key by key, objects by their attributes."""
    for key, value in given.items():
        found = made.get(key) if hasattr(made, "get") else getattr(made, key)
        if isinstance(value, dict) and "class_path" in value:
            assert type(found).__name__ == value["class_path"].rpartition(".")[2]
        elif isinstance(value, dict):
            says(value, found)
        else:
            assert found == value, key


@pytest.mark.parametrize(("method", "overlay"), STACKS)
def test_an_overlay_is_built_as_it_says(method, overlay, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    made = built(monkeypatch, method, f"scale/{overlay}")
    given = yaml.safe_load((ROOT / f"configs/scale/{overlay}.yaml").read_text())
    for part in ("policy", "batch"):
        if expected := given.get("model", {}).get("init_args", {}).get(part):
            says(expected, made.model.policy_params if part == "policy" else made.model.batch)
    says(given.get("trainer", {}), made.trainer)
    assert made.trainer.use_distributed_sampler is False
    if isinstance(strategy := made.trainer.strategy, ModelParallelStrategy):
        assert strategy._tensor_parallel_size == 1
        assert strategy._data_parallel_size == made.trainer.devices * (made.trainer.num_nodes or 1)
    if engine := given.get("model", {}).get("init_args", {}).get("engine"):
        assert type(made.model.engine).__name__ == engine["class_path"].removeprefix("rollouts.")
        says({key: value for key, value in engine["init_args"].items() if key != "folder"}, made.model.engine)
