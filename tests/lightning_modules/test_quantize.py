"""`main.py test` with the module that measures quantised policies: cells, report, checkpoints of other methods."""

import json

import pytest
import torch

from lightning_modules.core.arm_figures import Answered, arm_figures
from lightning_modules.core.calibration import Calibration, given_sequences
from main import main
from policies import Policy, PolicyParams
from policies.quantization import Bits, QuantizationMethod
from policies.quantization.matrix import METHODS, cells
from support.errors import ConfigError

QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
SMALL = [
    "--data.val_size=4",
    "--model.calibration.size=4",
    "--model.sampling.max_new_tokens=24",
    "--model.seeds=[1, 2]",
]
FEW = [{"name": "RTN", "group": 32}, {"name": "QuaRot-KV", "rotation": True, "bits": ["W16-A16-KV3"]}]


def measured(folder, *arguments):
    """The command line's object of one small test."""
    settings = [*QUIET, *SMALL, f"--trainer.default_root_dir={folder}", *arguments]
    return main(["test", "--config=configs/quantize.yaml", *settings])


def test_a_checkpoint_of_another_method_is_measured_and_left_as_it_was(tmp_path):
    """Its weights, not the start's; the float model is the first cell, a weight-only cell and a simulated one follow."""
    fitted = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", f"--trainer.default_root_dir={tmp_path}/fit"]
    main(["fit", "--config=configs/sft.yaml", *QUIET, *fitted, "--data.train_size=64", "--data.val_size=1"])
    (checkpoint,) = (tmp_path / "fit").glob("**/*.ckpt")
    bits = f"--model.methods={json.dumps(FEW)}"
    module = measured(
        tmp_path / "test", bits, "--model.bits=[W8-A16-KV16, W2-A16-KV16]", f"--ckpt_path={checkpoint}"
    ).model
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    state = module.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in saved.items())
    start = Policy(PolicyParams("assets/tiny_reasoner")).state_dict()
    assert not all(torch.equal(weight, start[name.removeprefix("policy.")]) for name, weight in saved.items())

    (path,) = (tmp_path / "test").glob("*/quantization.json")
    report = json.loads(path.read_text())
    assert [cell["bits"] for cell in report["cells"]] == [
        "W16-A16-KV16", "W8-A16-KV16", "W2-A16-KV16", "W16-A16-KV3",
    ]  # fmt: skip
    float_cell, eight, two, cache = report["cells"]
    assert float_cell["bits_per_weight"] == 16 and float_cell["error"] is None
    assert (
        eight["error"] < 1e-3 < 0.05 < two["error"] and 2 < two["bits_per_weight"] < 3 < two["bits_per_weight_of_model"]
    )
    assert two["perplexity"] > 1.2 * eight["perplexity"] and len(two["layers"]) == 28 and cache["cache_bits"] > 3
    assert all(set(cell["by_seed"]) == {"1", "2"} and cell["problems"] == 4 for cell in report["cells"])
    text = path.with_suffix(".md").read_text()
    assert text.count("| W2-A16-KV16") == 2 and path.with_suffix(".png").stat().st_size > 10_000


def test_training_and_a_policy_without_a_judge_are_refused(tmp_path):
    with pytest.raises((ConfigError, SystemExit)):
        main(["fit", "--config=configs/quantize.yaml", *QUIET, f"--trainer.default_root_dir={tmp_path}"])
    with pytest.raises((ConfigError, SystemExit)):
        measured(tmp_path, "--model.rewards=[{class_path: rewards.RepetitionPenalty}]")


def test_the_matrix_leaves_out_repetitions_and_the_float_model():
    methods = [QuantizationMethod("RTN"), QuantizationMethod("GPTQ", rounding="gptq")]
    matrix = cells(["W4-A16-KV16", "W16-A8-KV16", "W16-A16-KV16"], methods)
    assert [(str(bits), method.name) for bits, method in matrix] == [
        ("W4-A16-KV16", "RTN"), ("W16-A8-KV16", "RTN"), ("W4-A16-KV16", "GPTQ"),
    ]  # fmt: skip
    assert len(cells([], METHODS)) == 11
    with pytest.raises(ConfigError, match="matrix is empty"):
        cells(["W16-A16-KV16"], methods)
    with pytest.raises(ConfigError, match="share a name"):
        cells(["W4-A16-KV16"], [methods[0], methods[0]])


def test_figures_of_an_arm_by_seed_and_difficulty_and_its_change():
    def answers(correct):
        return [
            Answered(str(problem), str(1 + problem % 2), seed, correct[problem][seed], 10 * problem, problem == 3)
            for problem in range(4)
            for seed in (0, 1)
        ]

    baseline = answers([[True, True]] * 4)
    figures = arm_figures(answers([[True, False], [True, True], [False, False], [True, True]]), baseline)
    assert (
        figures["accuracy"] == 5 / 8 and figures["change"] == -3 / 8 and figures["by_seed"] == {"0": 3 / 4, "1": 1 / 2}
    )
    assert figures["by_difficulty"]["1"] == {"problems": 2, "accuracy": 1 / 4, "length": 10}
    assert figures["length"] == 15 and figures["truncated"] == 1 / 4
    low, high = figures["change_interval"]
    assert -1 <= low < -3 / 8 < high <= 0


def test_calibration_sequences_of_files_texts_and_random_tokens(tmp_path):
    policy = Policy(PolicyParams("assets/tiny_reasoner"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": "1+1=2, " * 9, "other": "4"}) for _ in range(3)))
    plain = tmp_path / "plain.txt"
    plain.write_text("1+2+0=3, " * 40)

    def sequences(**settings):
        return given_sequences(policy, Calibration(**settings), None, None)

    assert [policy.tokenizer.decode(ids) for ids in sequences(source=str(rows), size=2, max_tokens=6)] == ["1+1=2,"] * 2
    assert policy.tokenizer.decode(sequences(source=str(rows), text="other")[0]) == "4"
    parts = sequences(source=str(plain), size=4, max_tokens=50)
    assert len(parts) == 4 and {len(part) for part in parts} == {50}
    drawn = sequences(source="random", size=3, max_tokens=7)
    assert [len(ids) for ids in drawn] == [7] * 3 and len({tuple(ids) for ids in drawn}) == 3
    for settings, message in (
        ({"source": str(rows), "text": "absent"}, "without the column 'absent'"),
        ({"source": "nowhere.txt"}, "not a file"),
        ({"source": "solutions"}, "names no column"),
    ):
        with pytest.raises(ConfigError, match=message):
            sequences(**settings)


def test_without_seeds_there_must_be_solutions_and_given_calibration_data():
    from lightning_modules import Quantize
    from rewards import ExactAnswer

    policy, rewards = PolicyParams("assets/tiny_reasoner"), [ExactAnswer()]
    with pytest.raises(ConfigError, match="nothing is sampled"):
        Quantize(policy, rewards, seeds=[])
    assert Quantize(policy, rewards, seeds=[], solutions="s", calibration=Calibration("random")).cells[0][0] == Bits(3)
    with pytest.raises(ConfigError, match="outliers"):
        Quantize(policy, rewards, outliers=0.5)
