"""Our numbers beside TRL's, computed by its trainers' methods on a stand-in for the trainer. Needs the extra `bench`.

Random log-probs in float64; the remaining differences are those of row weights, which are float32 here.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

from trl.rewards import get_soft_overlong_punishment  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.rloo_trainer import RLOOTrainer  # noqa: E402

from objectives import (  # noqa: E402
    CISPO,
    SAPO,
    VESPO,
    ClippedSurrogate,
    ConstantLength,
    GlobalNorm,
    GroupNorm,
    LeaveOneOut,
    Reinforce,
    SequenceMean,
    SequenceSum,
    TokenMean,
)
from objectives.global_norm import normalised_sum  # noqa: E402
from objectives.kl import kl_estimate  # noqa: E402
from objectives.policy_losses import log_ratios  # noqa: E402
from rewards import SoftOverlong  # noqa: E402

ROWS, TIME, GROUP, LONGEST = 8, 7, 4, 16
LENGTHS = torch.tensor([7, 3, 1, 5, 6, 2, 7, 4])
MASK = torch.arange(TIME) < LENGTHS[:, None]
GROUPS = torch.arange(ROWS) // GROUP
NAN = float("nan")
WORST: dict[str, float] = defaultdict(float)


def close(kind, ours, theirs, tolerance):
    gap = float((ours.detach().double() - theirs.detach().double()).abs().max())
    WORST[kind] = max(WORST[kind], gap)
    assert gap <= tolerance, (kind, gap)


def random(seed, scale=1.0, shape=(ROWS, TIME)):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def accelerator():
    def same(values, **_):
        return values

    return SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, process_index=0, gather=same, reduce=same, sync_gradients=True
    )


def trainer(**changes):
    """A stand-in with the attributes that the trainers' methods read; the defaults are TRL's."""
    args = {
        "delta": None,
        "use_bias_correction_kl": False,
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 1,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "per_device_train_batch_size": ROWS,
        "gradient_checkpointing_kwargs": None,
    }
    own = {
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": "dapo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": LONGEST,
        "entropy_coef": 0.0,
        "aux_loss_enabled": False,
        "use_adaptive_entropy": False,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "_metrics": {"train": defaultdict(list)},
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "accelerator": accelerator(),
        "get_gamma_weights": GRPOTrainer.get_gamma_weights,
    }
    args |= {key: changes.pop(key) for key in list(changes) if key in args}
    stub = SimpleNamespace(**(own | changes), args=SimpleNamespace(**args))
    stub._entropy_bonus_enabled = stub.entropy_coef > 0
    return stub


OLD, REFERENCE, ADVANTAGES = random(1) - 2, random(2) - 2, random(3, shape=(ROWS,))
NEW, ENTROPY = OLD + random(4, 0.5), random(5).abs()


def theirs(stub, rows=slice(None), entropy=False):
    """(loss, gradients of log-probs and entropies) by TRL."""
    leaves = NEW.clone().requires_grad_(), ENTROPY.clone().requires_grad_()
    stub._get_per_token_logps_and_entropies = lambda *_, **__: (leaves[0][rows], leaves[1][rows], None)
    ids = torch.zeros(ROWS, TIME, dtype=torch.long)[rows]
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": MASK[rows].long(),
        "advantages": ADVANTAGES[rows],
        "old_per_token_logps": OLD[rows],
        "ref_per_token_logps": REFERENCE[rows],
        "num_items_in_batch": MASK.sum(),
    }
    loss = GRPOTrainer._compute_loss(stub, None, inputs)
    loss.backward()
    return loss, leaves[0].grad, leaves[1].grad


def ours(loss, aggregation, beta=0.0, weighted=False, bonus=0.0):
    leaves = NEW.clone().requires_grad_(), ENTROPY.clone().requires_grad_()
    by_token = loss(leaves[0], OLD, ADVANTAGES[:, None].expand(ROWS, TIME), MASK)[0]
    if beta:
        penalty = kl_estimate(leaves[0], REFERENCE, "k3")
        by_token = by_token + beta * penalty * (log_ratios(leaves[0], OLD, MASK).exp() if weighted else 1.0)
    by_token = by_token - bonus * leaves[1]
    value = (torch.where(MASK, by_token, 0.0) * aggregation(MASK)[:, None]).sum()
    value.backward()
    return value, leaves[0].grad, leaves[1].grad


#: TRL's settings, and the objects that mean the same
VARIANTS = {
    "grpo": ({"loss_type": "grpo"}, ClippedSurrogate(), SequenceMean()),
    "bnpo": ({"loss_type": "bnpo"}, ClippedSurrogate(), TokenMean()),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, ClippedSurrogate(0.2, 0.28), TokenMean()),
    "dapo, delta": (
        {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 1.5},
        ClippedSurrogate(0.2, 0.28, dual_clip=1.5),
        TokenMean(),
    ),
    "dr_grpo": ({"loss_type": "dr_grpo"}, ClippedSurrogate(), ConstantLength(LONGEST)),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.3}, CISPO(ratio_cap=1.3), TokenMean()),
    "cispo, 5": ({"loss_type": "cispo", "epsilon_high": 5.0}, CISPO(clip_high=4.0), TokenMean()),
    "sapo": ({"loss_type": "sapo"}, SAPO(), SequenceMean()),
    "luspo's weights on token ratios": ({"loss_type": "luspo"}, ClippedSurrogate(), SequenceSum()),
    "vespo": ({"loss_type": "vespo"}, VESPO(), TokenMean()),
    "vespo, other k": (
        {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_neg": 3.0},
        VESPO(k_positive=1.0, lambda_negative=3.0),
        TokenMean(),
    ),
}


@pytest.mark.parametrize("kl", ["no KL", "KL", "bias-corrected KL"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_aggregation_and_kl(variant, kl):
    settings, loss, aggregation = VARIANTS[variant]
    beta, weighted = (0.0 if kl == "no KL" else 0.3), kl == "bias-corrected KL"
    expected = theirs(trainer(**settings, beta=beta, use_bias_correction_kl=weighted))
    found = ours(loss, aggregation, beta, weighted)
    close("loss", found[0], expected[0], 2e-6)
    close("gradient", found[1], expected[1], 2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_accumulation_over_micro_batches(variant):
    """TRL's two micro-batches of one step add up to our one step, except for bnpo.

    Its denominators are those of the micro-batch.
    """
    settings, loss, aggregation = VARIANTS[variant]
    stub = trainer(**settings, current_gradient_accumulation_steps=2, steps_per_generation=2)
    total = sum(theirs(stub, rows)[1] for rows in (slice(0, 4), slice(4, 8)))
    found = ours(loss, aggregation)[1]
    if variant == "bnpo":
        assert not torch.allclose(found, total, atol=1e-4)
    else:
        close("gradient, accumulated", found, total, 2e-6)


def test_entropy_bonus():
    expected = theirs(trainer(loss_type="dapo", entropy_coef=0.01))
    found = ours(ClippedSurrogate(), TokenMean(), bonus=0.01)
    for part, kind in enumerate(("loss", "gradient", "gradient of the entropy")):
        close(kind, found[part], expected[part], 2e-6)


# ---- advantages ------------------------------------------------------------------------------------------------------

ACCURACY = torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 0])
STYLE = torch.tensor([0.1, 0.4, 0.2, NAN, 0.0, 0.3, 0.3, 0.9])
ABSENT = torch.tensor([1.0, NAN, 0, 1, 0.5, 1, NAN, 0])
WEIGHTS = torch.tensor([1.0, 0.5])
END = 9


def scored(method, rewards, **changes):
    """TRL's outputs for these rewards, which have one column per reward function."""
    completions = [
        [1] * int(n - 1) + [END if i % 3 else 1] for i, n in enumerate(LENGTHS)
    ]  # rows 0, 3 and 6 do not end
    rows = [[0]] * ROWS
    generated = (
        (rows, completions, None, rows, None, {}, None, None) if method is GRPOTrainer else (rows, completions, rows)
    )
    own = {
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "pad_to_multiple_of": None,
        "ref_model": None,
        "num_iterations": 1,
        "num_generations": GROUP,
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "eos_token_ids": [END],
        "scale_rewards": "group",
        "reward_weights": WEIGHTS[: rewards.shape[1]],
        "reward_funcs": list(rewards[0]),
        "reward_func_names": list("ab")[: rewards.shape[1]],
        "multi_objective_aggregation": "sum_then_normalize",
        "mask_truncated_completions": False,
        "normalize_advantages": False,
        "reward_clip_range": None,
        "log_multimodal": False,
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "_logs": {
            "prompt": [],
            "completion": [],
            "advantages": [],
            "rewards": defaultdict(list),
            "extra": defaultdict(list),
        },
        "_generate": lambda _: generated,
        "_calculate_rewards": lambda *_: rewards.clone(),
    }
    stub = trainer(**(own | changes))
    stub._get_per_token_logps_and_entropies = lambda model, *_, **__: (
        (OLD if model is stub.model else REFERENCE),
        None,
        None,
    )
    if stub.beta:
        stub.ref_model = object()
    return method._generate_and_score_completions(stub, [{"prompt": ""}] * ROWS)


def advantage(part, rewards):
    return part(rewards, GROUPS, MASK.long(), MASK)


def weighted(rewards):
    total = (rewards * WEIGHTS[: rewards.shape[1]]).nansum(1)
    return torch.where(rewards.isnan().all(1), NAN, total)


GIVEN = {
    "one reward": ACCURACY[:, None],
    "two rewards": torch.stack([ACCURACY, STYLE], 1),
    "rows without": ABSENT[:, None],
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages(scale, given):
    part = GroupNorm({"group": "group_std", "batch": "batch_std", "none": "none"}[scale])
    expected = scored(GRPOTrainer, GIVEN[given], scale_rewards=scale)["advantages"]
    close("advantage", advantage(part, weighted(GIVEN[given])), expected, 2e-6)


@pytest.mark.parametrize("given", GIVEN)
def test_normalise_then_sum(given):
    rewards = GIVEN[given]
    expected = scored(GRPOTrainer, rewards, multi_objective_aggregation="normalize_then_sum")["advantages"]
    total = normalised_sum(rewards.T, WEIGHTS[: rewards.shape[1]], GROUPS)
    close("advantage", advantage(GlobalNorm(), total), expected, 2e-6)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_leave_one_out_advantages_with_the_kl_in_the_reward(beta, normalise, given):
    part = LeaveOneOut("batch_std" if normalise else "none")
    rewards = weighted(GIVEN[given]) - beta * (kl_estimate(OLD, REFERENCE, "k1") * MASK).sum(1)
    expected = scored(RLOOTrainer, GIVEN[given], beta=beta, normalize_advantages=normalise)["advantages"]
    close("advantage", advantage(part, rewards), expected, 2e-6)


def test_rloo_on_policy_is_reinforce_with_the_sequence_sum():
    """At a ratio of one; the values differ by the constant that a score function leaves out."""
    leaf = OLD.clone().requires_grad_()
    stub = trainer()
    stub._get_per_token_logps_and_entropies = lambda *_, **__: (leaf, ENTROPY, None)
    ids = torch.zeros(ROWS, TIME, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": MASK.long(),
        "advantages": ADVANTAGES, "old_logps": (OLD * MASK).sum(1),
    }  # fmt: skip
    RLOOTrainer._compute_loss(stub, None, inputs).backward()
    own = OLD.clone().requires_grad_()
    by_token = Reinforce()(own, OLD, ADVANTAGES[:, None].expand(ROWS, TIME), MASK)[0]
    (torch.where(MASK, by_token, 0.0) * SequenceSum()(MASK)[:, None]).sum().backward()
    close("gradient", own.grad, leaf.grad, 2e-6)


def test_truncated_rows_carry_no_loss_but_count_in_their_group():
    output = scored(GRPOTrainer, ACCURACY[:, None], mask_truncated_completions=True)
    truncated = torch.tensor([i % 3 == 0 for i in range(ROWS)])
    assert torch.equal(output["completion_mask"].bool(), MASK & ~truncated[:, None])
    assert int(output["num_items_in_batch"]) == int((MASK & ~truncated[:, None]).sum())
    close("advantage", advantage(GroupNorm(), ACCURACY), output["advantages"], 2e-6)


@pytest.mark.parametrize(("longest", "cache"), [(20, 5), (20, 20), (7, 1)])
def test_soft_overlong_punishment(longest, cache):
    lengths = list(range(longest + 3))
    expected = torch.tensor(get_soft_overlong_punishment(longest, cache)(completion_ids=[[1] * n for n in lengths]))
    found = SoftOverlong(longest, cache).score(SimpleNamespace(lengths=torch.tensor(lengths)))
    close("soft overlong punishment", found, expected, 1e-6)


def test_the_greatest_differences_are_rounding():
    print("\n".join(f"{kind}: at most {gap:.1e}" for kind, gap in WORST.items()))
    assert max(WORST.values(), default=0.0) < 1e-6
