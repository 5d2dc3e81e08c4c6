"""Tiny models of many families: every cell of the matrix is exact, or refused with a message before the first rollout.

`make architectures` computes all of it and writes the table of docs/models.md.
"""

import re
from contextlib import nullcontext

import pytest
import torch

from benchmarks.architectures import COLUMNS, MARK, PAGE, PROMPTS, Cell, row, table
from benchmarks.families import FAMILIES
from benchmarks.tiny_models import WINDOW, build
from policies import LoRA, Policy, PolicyParams
from rollouts import EmbeddedEngine, SamplingParams, TransformersEngine, engine_checks
from support.errors import ConfigError

BY_NAME = {str(family): family for family in FAMILIES}
ROLLED = ("rollout", "update")
#: (family, columns, what they say): one member of each kind
CELLS = [
    ("llama", COLUMNS, ("embedded", "packed", "exact", "exact")),
    ("gpt2", ROLLED, ("generate", "packed")),  # dropout in modules of its own; learned positions
    ("mistral", ROLLED, ("generate", "padded")),  # a window that is exceeded
    ("gemma2", ROLLED, ("generate", "padded")),  # capped logits
    ("gpt_oss", ROLLED, ("generate", "padded")),  # sinks
    ("phi", ROLLED, ("generate", "padded")),  # an output layer with a bias
    ("olmo", ROLLED, ("generate", "packed")),  # norms without weights
    ("rwkv of seven layers", ROLLED, ("generate, by length, no cache", "by length")),
    ("rwkv6", ROLLED, ("embedded", "padded")),  # the project's own recurrent models
    ("lfm2", ROLLED, ("generate", "padded")),  # convolutions
    ("qwen3_moe", ("LoRA",), (None,)),
    ("gemma4_text", ("LoRA",), (None,)),  # buffers
    ("cpmant", ("update",), ("refused: .*not a causal language model",)),
    ("gpt2", COLUMNS[3:], ("refused: .*lm_head and transformer.wte share one weight",)),
    ("jamba", ("LoRA",), ("refused: .*reads the weight of dt_proj without calling the layer",)),
    ("inkling2_text", COLUMNS[3:], (r"refused: .*model\.embed_tokens .*merged later",)),
]


def says(cell, expected):
    text = f"refused: {cell.way}" if cell.gap is None else cell.way
    return not cell.wrong and (expected is None or bool(re.fullmatch(f"{expected}.*", text)))


@pytest.mark.parametrize(("name", "columns", "expected"), CELLS, ids=[f"{name}, {'+'.join(c)}" for name, c, _ in CELLS])
def test_a_cell_is_exact_or_refused(name, columns, expected):
    cells = row(BY_NAME[name], columns)
    for (column, cell), text in zip(cells.items(), expected, strict=True):
        assert says(cell, text), f"{name}, {column}: {cell}"


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_family_is_exact_or_refused(family):
    for column, cell in row(family).items():
        assert not cell.wrong, f"{family}, {column}: {cell}"


def test_the_page_has_a_row_per_family():
    text = PAGE.read_text(encoding="utf-8").split(MARK)[1]
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    assert names == [str(family) for family in FAMILIES]
    assert "**off by" not in text


def test_a_wrong_cell_is_seen():
    assert Cell(1e-3).wrong and Cell(1e-6, 0.1).wrong and Cell(float("nan")).wrong
    assert not Cell(1e-7, 1e-6).wrong and not Cell(None, way="refused").wrong
    shown = table(
        {"a": dict.fromkeys(COLUMNS, Cell(0.5, way="packed")), "b": dict.fromkeys(COLUMNS, Cell(None, way="No."))}
    )
    assert "**off by 0.5** (packed)" in shown and "| refused (1) |" in shown and "1. b: No." in shown


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistral")
    build(BY_NAME["mistral"], folder)
    return str(folder)


def test_ways_that_differ_are_named(windowed):
    """A window is named by the decoder; by the packed attention too, if the configuration called it otherwise."""
    policy = Policy(PolicyParams(windowed))
    assert not policy.packed
    policy.packed = True
    policy.bare.set_attn_implementation("shared_prefix")
    with pytest.warns(UserWarning, match="packed forwards are not possible, because its attention uses sliding_window"):
        policy.check(PROMPTS)
    assert policy.scoring == "padded" and policy.bare.config._attn_implementation == policy.attention
    with pytest.warns(UserWarning, match=r"limits its attention \(sliding_window\)"):
        EmbeddedEngine().generate(policy, [[5] * (WINDOW + 1)], [{}], 1, SamplingParams(2))


def test_a_generate_that_differs_from_the_forward_is_refused(reasoner, monkeypatch):
    policy = Policy(PolicyParams(reasoner))
    monkeypatch.setattr("rollouts.transformers_engine.recorded_gap", lambda *_: 1.0)
    with pytest.raises(ConfigError, match=r"samples from another distribution than its forward .*without a cache: 1"):
        TransformersEngine().generate(policy, [[5, 6], [7]], [{"id": 0}, {"id": 1}], 1, SamplingParams(3))


def test_recorded_log_probs_are_compared_where_tokens_were_sampled(reasoner):
    policy = Policy(PolicyParams(reasoner))
    sampling, prompts = SamplingParams(5, temperature=0.7, top_k=9), [[5, 6, 7], [9]]
    batch = TransformersEngine().generate(policy, prompts, [{"id": 0}, {"id": 1}], 1, sampling)
    values = (
        policy,
        prompts,
        batch.completion_ids,
        batch.behaviour_logprobs,
        batch.lengths,
        torch.full((2, 0), -1),
        sampling,
    )
    assert engine_checks.recorded_gap(*values) < 1e-5
    # the first token of each row was forced: its log-prob is another token's
    forced, other = torch.tensor([[3], [3]]), batch.behaviour_logprobs.clone()
    other[:, 0] -= 5.0
    assert engine_checks.recorded_gap(*values[:3], other, batch.lengths, forced, sampling) < 1e-5
    assert engine_checks.recorded_gap(*values[:3], batch.behaviour_logprobs - 0.1, *values[4:]) == pytest.approx(
        0.1, abs=1e-4
    )


def test_first_completions_that_differ_end_the_use_of_the_decoder(reasoner, monkeypatch):
    policy, engine = Policy(PolicyParams(reasoner)), EmbeddedEngine()
    monkeypatch.setattr("rollouts.embedded.recorded_gap", lambda *_: 1.0)
    with pytest.warns(UserWarning, match=r"decodes differently \(mean log-probs differ by 1\)"):
        engine.generate(policy, [[5, 6], [7]], [{"id": 0}, {"id": 1}], 1, SamplingParams(3))
    assert not any(engine._checked.values())


def test_an_adapter_that_peft_does_not_read_back_is_refused(tmp_path):
    """laguna's shared experts are renamed in loading and not in saving."""
    for name, lost in (("llama", False), ("laguna", True)):
        build(BY_NAME[name], tmp_path / name)
        policy = Policy(PolicyParams(str(tmp_path / name), lora=LoRA(r=2)))
        before = {key: p.detach().clone() for key, p in policy.model.named_parameters()}
        with pytest.raises(ConfigError, match="shared_experts.* Use callbacks.ExportPolicy") if lost else nullcontext():
            policy.check_adapter_folder()
        after = dict(policy.model.named_parameters())
        assert before.keys() == after.keys() and all(torch.equal(before[key], p) for key, p in after.items())
        assert all(p.requires_grad == ("lora" in key) for key, p in after.items())


@pytest.mark.parametrize("engine", [EmbeddedEngine, TransformersEngine])
def test_forced_tokens_are_no_difference(reasoner, engine):
    policy, forced = Policy(PolicyParams(reasoner)), [[4, 4, 4], [9]]
    batch = engine().generate(policy, [[5, 6], [7]], [{"id": 0}, {"id": 1}], 1, SamplingParams(6), forced)
    assert batch.completion_ids[0, :3].tolist() == [4, 4, 4]


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head"], ["embed_tokens"]])
def test_adapters_are_trained_and_act_everywhere(tmp_path, targets):
    build(BY_NAME["llama"], tmp_path)
    policy = Policy(PolicyParams(str(tmp_path), lora=LoRA(r=2, target_modules=targets)))
    policy.check(PROMPTS)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    batch = EmbeddedEngine().generate(policy, PROMPTS, [{"id": i} for i in range(3)], 2, SamplingParams(4))
    policy.logprobs(batch.prompt_groups(torch.arange(6)))[0][batch.completion_mask].sum().backward()
    reached = {name for name, p in policy.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    zero_at_first = {name for name, p in before.items() if "lora" in name and not p.any()}
    assert reached == zero_at_first and reached, "the other half of an adapter follows"
    assert all(torch.equal(before[name], p) for name, p in policy.model.named_parameters()), "the check leaves no trace"
