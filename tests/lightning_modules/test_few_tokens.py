"""S-GRPO and T-SPMO: steps equal the gradients of the formulas, no edges mean no step, resumed runs repeat."""

import lightning as L
import pytest
import torch

from callbacks import RolloutCheckpoint
from lightning_modules import SGRPO, TSPMO
from lightning_modules.core.policy_update import without_idle_tokens
from objectives import GroupNorm
from policies import LoRA, PolicyParams
from rewards import FunctionReward
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import adamw, build, fit, run_config, sgd


def digit_first(completions):
    return [float(any(c.isdigit() for c in text[:3])) for text in completions]


def few_tokens(method, model, reward=digit_first, group=8, **parts):
    small = {
        "batch": BatchPlan(prompts_per_rollout=2, group_size=group),
        "sampling": SamplingParams(max_new_tokens=12),
        "optimizer": sgd(1.0),
        "max_grad_norm": None,
    }
    return build(model, [FunctionReward(reward)], method, **(small | parts))


def trained(module):
    return {name: p.detach().clone() for name, p in module.policy.model.named_parameters() if p.requires_grad}


def one_step(module):
    module.configure_model()
    before = trained(module)
    trainer = fit(module)
    after = trained(module)
    return before, {name: before[name] - after[name] for name in before}, trainer  # SGD at 1: the gradient of the loss


def gradient(module, before, value):
    """Of value(log-probs of every completion token of the last rollout), by one plain forward for each row."""
    model, batch = module.policy.model, module.last_rollout
    model.load_state_dict(before, strict=False)
    model.zero_grad()
    logprobs = []
    for row in range(len(batch.completion_ids)):
        prompt = batch.prompt_ids[row // batch.group_size][batch.prompt_mask[row // batch.group_size]]
        ids = torch.cat([prompt, batch.completion_ids[row]])[None]
        found = model(input_ids=ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        logprobs.append(found.gather(1, batch.completion_ids[row][:, None])[:, 0])
    value(torch.stack(logprobs), batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_equal(found, expected):
    assert all(torch.allclose(found[name], expected[name], atol=2e-5) for name in expected)
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3


# ---- S-GRPO ----------------------------------------------------------------------------------------------------------


def test_the_first_tokens_always_and_a_share_of_the_rest(reasoner):
    module = few_tokens(SGRPO, reasoner, cutoff=3, share=0.4, batch=BatchPlan(16, 16))
    trainer = fit(module)
    batch = module.last_rollout
    mask = module.loss_mask(batch)
    assert torch.equal(mask, module.loss_mask(batch)) and not (mask & ~batch.action_mask).any()
    assert torch.equal(mask[:, :3], batch.action_mask[:, :3])
    later = mask[:, 3:].sum() / batch.action_mask[:, 3:].sum()
    assert 0.35 < later < 0.45
    assert float(trainer.callback_metrics["train/loss_tokens"]) == pytest.approx(
        float(mask.sum() / batch.action_mask.sum())
    )
    module.most = 4
    few = module.loss_mask(batch)
    assert (few.sum(1) == mask.sum(1).clamp(max=4)).all() and not (few & ~mask).any()


def test_the_draw_changes_with_the_rollout(reasoner):
    module, masks = few_tokens(SGRPO, reasoner, cutoff=0, share=0.5), []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *given):
            if pl_module.last_rollout is not None:
                masks.append(pl_module.loss_mask(pl_module.last_rollout))

    fit(module, 3, callbacks=[Watch()])
    assert not torch.equal(masks[0][:, :4], masks[1][:, :4])


def test_s_grpos_step_is_the_gradient_of_its_formula(reasoner, monkeypatch):
    module = few_tokens(SGRPO, reasoner, cutoff=2, share=0.3)
    before, found, _ = one_step(module)
    monkeypatch.setattr(SGRPO, "rollouts_done", 0)  # the draw of the rollout that was learned from
    mask = module.loss_mask(module.last_rollout)

    def value(logprobs, batch):
        advantages = GroupNorm()(batch.rewards["digit_first"], batch.groups, None, None)
        rows = [
            (mask[i] * logprobs[i]).sum() / mask[i].sum() * advantages[i] for i in range(len(mask)) if mask[i].any()
        ]
        return -sum(rows) / len(rows)

    assert_equal(found, gradient(module, before, value))
    assert mask.sum() < 0.7 * module.last_rollout.action_mask.sum()


def test_what_follows_the_last_token_with_loss_is_left_out(reasoner):
    module = few_tokens(SGRPO, reasoner, cutoff=2, share=0.0)
    fit(module)
    batch = module.last_rollout
    short = without_idle_tokens(batch, batch.action_mask & (torch.arange(batch.action_mask.shape[1]) < 2))
    assert short.lengths.max() == 2 and torch.equal(short.completion_ids, batch.completion_ids)
    none = without_idle_tokens(batch, torch.zeros_like(batch.action_mask))
    assert (none.lengths == 1).all()


# ---- T-SPMO ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoRA(4, 8, target_modules=["q_proj", "v_proj"])], ids=["full", "lora"])
def test_t_spmos_step_is_the_gradient_of_its_formula(reasoner, lora):
    penalty = 0.3 if lora else 0.0
    module = few_tokens(TSPMO, reasoner, lora=lora, weight_penalty=penalty, replay=False, group=16)
    module.configure_model()
    if lora:  # fresh adapters are zero on one side, where the penalty would be seen on the other alone
        with torch.no_grad():
            for p in module.policy.model.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    before, found, trainer = one_step(module)
    edges = {}

    def value(logprobs, batch):
        rewards = batch.rewards["digit_first"].tolist()
        paths = [
            tuple(ids[keep].tolist()) for ids, keep in zip(batch.completion_ids, batch.completion_mask, strict=True)
        ]
        for row, path in enumerate(paths):
            own = range(row // 16 * 16, row // 16 * 16 + 16)
            for place in range(len(path)):
                parent = [rewards[i] for i in own if paths[i][:place] == path[:place]]
                child = [rewards[i] for i in own if paths[i][: place + 1] == path[: place + 1]]
                gain = sum(child) / len(child) - sum(parent) / len(parent)
                if abs(gain) > 1e-9:
                    edges.setdefault((row // 16, path[: place + 1]), gain * logprobs[row, place].exp())
        weights = sum(p.square().sum() for p in module.policy.model.parameters() if p.requires_grad)
        return -sum(edges.values()) / len(edges) + penalty * weights

    assert_equal(found, gradient(module, before, value))
    assert float(trainer.callback_metrics["train/edges"]) == len(edges) > 4
    assert float(trainer.callback_metrics["train/loss_tokens"]) < 0.3


def test_nothing_moves_without_edges(reasoner):
    told = []

    def later_equal(completions):
        told.append(len(completions))
        return digit_first(completions) if len(told) == 1 else [1.0] * len(completions)

    moved = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *given):
            moved.append(torch.cat([p.detach().flatten() for p in pl_module.policy.model.parameters()]))

    adam = {"optimizer": adamw(1e-2, weight_decay=0.1)}
    module = few_tokens(TSPMO, reasoner, later_equal, lora=LoRA(4, 8), replay=False, **adam)
    trainer = fit(module, 3, callbacks=[Watch()])
    start = few_tokens(TSPMO, reasoner, lora=LoRA(4, 8), **adam)
    start.configure_model()
    assert not torch.equal(torch.cat([p.detach().flatten() for p in start.policy.model.parameters()]), moved[0])
    assert torch.equal(moved[0], moved[1]) and torch.equal(moved[1], moved[2])
    assert trainer.global_step == 3 and float(trainer.callback_metrics["train/edges"]) == 0


def test_replays_go_on_from_a_completion_of_the_same_prompt(reasoner):
    module = few_tokens(TSPMO, reasoner, weight_penalty=0.0)
    trainer = fit(module)
    both = module.last_rollout
    batch, more = both.take([0, 1]), both.take([2, 3])
    cuts = (~more.action_mask & more.completion_mask).sum(1).view(2, -1)
    assert (cuts == cuts[:, :1]).all() and cuts.max() > 0
    for prompt in range(2):
        cut = int(cuts[prompt, 0])
        rows, own = more.completion_ids.view(2, 8, -1)[prompt], batch.completion_ids.view(2, 8, -1)[prompt]
        starts = {tuple(row[:cut].tolist()) for row in own}
        assert {tuple(row[:cut].tolist()) for row in rows} <= starts
    assert more.rewards.keys() == batch.rewards.keys()
    assert float(trainer.callback_metrics["train/extra_tokens"]) == float(more.action_mask.sum()) > 0
    assert float(trainer.callback_metrics["train/tokens"]) == float(both.action_mask.sum())
    assert torch.equal(
        module.last_sampled.completion_ids, batch.completion_ids[:, : module.last_sampled.completion_ids.shape[1]]
    )
    assert float(trainer.callback_metrics["train/reward"]) == pytest.approx(
        float(batch.rewards["digit_first"].mean())
    ), "replays do not count"


def test_mistakes_are_refused(reasoner):
    with pytest.raises(ConfigError, match="0 without policy.lora"):
        few_tokens(TSPMO, reasoner)
    with pytest.raises(ConfigError, match="not both 0"):
        few_tokens(SGRPO, reasoner, cutoff=0, share=0.0)
    with pytest.raises(ConfigError, match="TSPMO has no rewards"):
        TSPMO(PolicyParams(reasoner), [])


# ---- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SGRPO, TSPMO])
def test_a_resumed_run_repeats_the_whole_one(reasoner, tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    L.seed_everything(0)
    given = {"lora": LoRA(4, 8), "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}
    whole, first, second = (few_tokens(method, reasoner, **given) for _ in range(3))
    fit(whole, 5)
    fit(first, 2, callbacks=[RolloutCheckpoint(folder=str(tmp_path))])
    torch.manual_seed(999)
    fit(second, 5, ckpt_path=str(tmp_path / "rollout_000002.ckpt"))
    one, other = trained(whole), trained(second)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["s_grpo", "t_spmo"])
def test_the_configuration_runs(name, reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    cli = run_config([name], reasoner, **{"model.sampling.max_new_tokens": 12, "data.train_size": 16})
    names = [key for key, p in cli.model.policy.model.named_parameters() if p.requires_grad]
    assert names and all("lora" in key and ("q_proj" in key or "v_proj" in key) for key in names)
