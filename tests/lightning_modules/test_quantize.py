"""`main.py test` with the module that measures quantised policies: cells, report, checkpoints of other methods."""

import json

import lightning as L
import pytest
import torch

from callbacks import QuantizationReport
from datamodules import Demonstrations
from lightning_modules import SFT, Quantize
from lightning_modules.core.arm_figures import Answered, arm_figures
from lightning_modules.core.calibration import Calibration, given_sequences
from policies import Policy, PolicyParams
from policies.quantization import Bits, QuantizationMethod
from policies.quantization.matrix import METHODS, cells
from rewards import ExactAnswer
from rollouts import SamplingParams
from support.errors import ConfigError
from tests.helpers import fit, sums

FEW = [
    QuantizationMethod("RTN", group=32),
    QuantizationMethod("QuaRot-KV", ["W16-A16-KV3"], rotation=True, cache_group=16),
]
TINY = PolicyParams("assets/tiny_reasoner")


def test_a_checkpoint_of_another_method_is_measured_and_left_as_it_was(tmp_path):
    """Its weights, not the start's; the float model is the first cell, weight-only and simulated cells follow."""
    trained = SFT(TINY, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3))
    fit(trained, 1, data=Demonstrations("arithmetic", 16, train_size=32, val_size=1)).save_checkpoint(
        tmp_path / "c.ckpt"
    )
    module = Quantize(
        TINY,
        [ExactAnswer()],
        bits=["W8-A16-KV16", "W2-A16-KV16"],
        methods=FEW,
        calibration=Calibration(size=4),
        seeds=[1, 2],
        sampling=SamplingParams(max_new_tokens=24, temperature=0.6),
    )
    report = [QuantizationReport()]
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=report, default_root_dir=tmp_path
    )
    trainer.test(module, sums(val_size=4), ckpt_path=tmp_path / "c.ckpt", verbose=False)
    start, state = Policy(TINY).state_dict(), module.policy.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in trained.policy.state_dict().items())
    assert not all(torch.equal(weight, start[name]) for name, weight in state.items())

    (path,) = tmp_path.glob("*/quantization.json")
    figures = json.loads(path.read_text())
    assert [cell["bits"] for cell in figures["cells"]] == [
        "W16-A16-KV16", "W8-A16-KV16", "W2-A16-KV16", "W16-A16-KV3",
    ]  # fmt: skip
    float_cell, eight, two, cache = figures["cells"]
    assert float_cell["bits_per_weight"] == 16 and float_cell["error"] is None
    assert 0 < eight["error"] < 1e-4 < 0.01 < two["error"] and len(two["layers"]) == 28
    assert two["bits_per_weight"] == pytest.approx(2 + 18 / 32, abs=0.01)  # rows of 344 end in a group of 24
    assert two["bits_per_weight"] < two["bits_per_weight_of_model"] < 4
    assert cache["cache_bits"] == 3 + (16 + 3) / 16 and cache["perplexity"] != float_cell["perplexity"]
    assert two["perplexity"] != eight["perplexity"] == pytest.approx(float_cell["perplexity"], rel=1e-2)
    assert all(set(cell["by_seed"]) == {"1", "2"} and cell["problems"] == 4 for cell in figures["cells"])
    assert trainer.callback_metrics["test/W2-A16-KV16/RTN/accuracy"] == pytest.approx(two["accuracy"])
    text = path.with_suffix(".md").read_text()
    assert text.count("| W2-A16-KV16") == 2 and path.with_suffix(".png").stat().st_size > 10_000


def test_training_and_a_policy_without_a_judge_are_refused():
    module = Quantize(TINY, [], bits=["W4-A16-KV16"], methods=FEW)
    with pytest.raises(ConfigError, match="does not train one; start it with python main.py test"):
        fit(module, 1)
    with pytest.raises(ConfigError, match="none of model.rewards judges correctness"):
        L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).test(module, sums())


def test_the_matrix_leaves_out_repetitions_and_the_float_model():
    methods = [QuantizationMethod("RTN"), QuantizationMethod("GPTQ", rounding="gptq")]
    matrix = cells([Bits(4), Bits(16, 8), Bits()], methods)
    assert [(str(bits), method.name) for bits, method in matrix] == [
        ("W4-A16-KV16", "RTN"), ("W16-A8-KV16", "RTN"), ("W4-A16-KV16", "GPTQ"),
    ]  # fmt: skip
    assert len(cells([], METHODS)) == 11
    with pytest.raises(ConfigError, match="matrix is empty"):
        cells([Bits()], methods)
    with pytest.raises(ConfigError, match="share a name"):
        cells([Bits(4)], [methods[0], methods[0]])


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
    policy, rewards = PolicyParams("assets/tiny_reasoner"), [ExactAnswer()]
    with pytest.raises(ConfigError, match="nothing is sampled"):
        Quantize(policy, rewards, seeds=[])
    assert Quantize(policy, rewards, seeds=[], solutions="s", calibration=Calibration("random")).cells[0][0] == Bits(3)
    with pytest.raises(ConfigError, match="outliers"):
        Quantize(policy, rewards, outliers=0.5)
