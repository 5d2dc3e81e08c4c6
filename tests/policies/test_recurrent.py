"""Recurrent models: the forms of the recurrence agree, and no padding, gap or neighbour in a row changes anything."""

import json
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.tiny_models import enlarge
from policies.recurrent import RodimusConfig, RodimusForCausalLM, RWKV6Config, RWKV6ForCausalLM
from policies.recurrent.rodimus import RodimusMixer
from policies.recurrent.scan import chunked_scan, recurrent_scan
from policies.recurrent.state import Tokens

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0}
MODELS = {
    "rodimus": RodimusConfig(**SIZES),
    "rodimus plus": RodimusConfig(**SIZES, block_type="rodimus_plus", num_attention_heads=4, window_size=5),
    "rodimus plus, long window": RodimusConfig(
        **SIZES, block_type="rodimus_plus", num_attention_heads=2, window_size=40
    ),
}
MODELS["rwkv6"] = RWKV6Config(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, head_size=8, mix_rank=4, decay_rank=4, pad_token_id=0
)
TIME = 39  # neither a multiple of a chunk nor of a window


@pytest.fixture(params=list(MODELS))
def model(request):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[request.param])
    enlarge(model)
    return model.eval()


@pytest.fixture
def ids():
    return torch.randint(1, 50, (3, TIME), generator=torch.Generator().manual_seed(1))


def alone(model, sequence):
    return model(input_ids=sequence[None]).logits[0]


def close(values, expected, limit=1e-5):
    values, expected = values.detach(), expected.detach()
    assert float((values - expected).abs().max()) <= limit * max(1.0, float(expected.abs().max()))


def parts(shape, decay, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(2, 3, shape, size, generator=generator, dtype=dtype) for size in (6, 6, 5))
    log_decay = -decay * torch.rand(query.shape, generator=generator, dtype=dtype)
    state = torch.randn(2, 3, 6, 5, generator=generator, dtype=dtype)
    return query, key, value, log_decay, state


def definition(query, key, value, log_decay, state, before):
    """o_t = sum_m q_tm (S_0m prod_{u < e} exp(a_um) + sum_{j < e} k_jm v_j prod_{j < u < e} exp(a_um)), by loops.

    e is t, or t + 1 where outputs read their own token too.
    """
    outputs = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=value.dtype)
    for t in range(query.shape[-2]):
        end = t if before else t + 1
        kept = log_decay[..., :end, :].sum(-2).exp()
        outputs[..., t, :] = ((query[..., t, :] * kept)[..., None] * state).sum(-2)
        for j in range(end):
            weight = (query[..., t, :] * key[..., j, :] * log_decay[..., j + 1 : end, :].sum(-2).exp()).sum(-1)
            outputs[..., t, :] += weight[..., None] * value[..., j, :]
    return outputs


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1, 30.0])  # with 30, the inverse of a chunk's decay overflows in float32
@pytest.mark.parametrize("time", [1, 16, 37])
def test_both_scans_are_the_definition_with_equal_gradients(time, decay, before):
    limit = 1e-5 if decay < 1 else 1e-4  # sums of log-decays are rounded too
    arguments = [part.requires_grad_() for part in parts(time, decay)]
    expected = definition(*(part.detach() for part in arguments), before)
    gradients = []
    for scan in (recurrent_scan, chunked_scan):
        outputs, state = scan(*arguments, before=before)
        close(outputs.detach(), expected, limit)
        gradients.append(torch.autograd.grad(outputs.sin().sum() + state.cos().sum(), arguments))
    for one, other in zip(*gradients, strict=True):
        assert bool(one.isfinite().all())
        close(one, other, limit)


@torch.no_grad()
def test_steps_and_parts_are_one_forward(model, ids):
    expected = model(input_ids=ids).logits
    state, outputs = model.model.initial_state(len(ids)), []
    size = state.nbytes
    for place in range(TIME):
        step = model(input_ids=ids[:, place : place + 1], past_key_values=state, use_cache=True)
        state, outputs = step.past_key_values, [*outputs, step.logits]
    close(torch.cat(outputs, 1), expected)
    assert state.nbytes == size and state.seen.tolist() == [TIME] * 3
    for first in (1, 2, 7, 21):
        begin = model(input_ids=ids[:, :first], use_cache=True)
        rest = model(input_ids=ids[:, first:], past_key_values=begin.past_key_values, use_cache=True)
        close(torch.cat([begin.logits, rest.logits], 1), expected)
        for layer, other in zip(rest.past_key_values.layers, state.layers, strict=True):
            assert all(torch.allclose(layer[name], other[name], atol=1e-4) for name in layer)


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_lower_precision(model, ids, autocast):
    expected = model(input_ids=ids).logits
    model = model if autocast else model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole = model(input_ids=ids).logits
        begin = model(input_ids=ids[:, :20], use_cache=True)
        rest = model(input_ids=ids[:, 20:21], past_key_values=begin.past_key_values, use_cache=True)
    assert whole.dtype == rest.logits.dtype == torch.bfloat16
    assert all(layer["memory"].dtype == torch.float32 for layer in rest.past_key_values.layers)
    close(whole.float(), expected, 0.1)
    close(rest.logits.float(), whole[:, 20:21].float(), 0.1)


MASKS = {
    "left": [[0] * 9 + [1] * 30, [1] * 39, [0] * 38 + [1]],
    "right": [[1] * 30 + [0] * 9, [1] * 39, [1] + [0] * 38],
    "both": [[0] * 4 + [1] * 30 + [0] * 5, [1] * 39, [0] * 30 + [1] * 2 + [0] * 7],
    "between": [[1] * 9 + [0] * 5 + [1] * 25, [0, 1] * 19 + [1], [0] * 3 + [1] * 20 + [0] * 10 + [1] * 6],
}


@torch.no_grad()
@pytest.mark.parametrize("kind", MASKS)
def test_padding_anywhere_changes_nothing(model, ids, kind):
    mask = torch.tensor(MASKS[kind])
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # as generate and the updates give them
    for arguments in ({}, {"position_ids": positions}):
        outputs = model(input_ids=ids, attention_mask=mask, use_cache=True, **arguments)
        for row, real in enumerate(mask.bool()):
            close(outputs.logits[row, real], alone(model, ids[row, real]))
    # What follows: the state is the one behind the last real token, in rows of different lengths.
    last = torch.tensor([[7, 8, 9], [10, 11, 0], [12, 0, 13]])
    last_mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1]])
    after = model(
        input_ids=last, attention_mask=torch.cat([mask, last_mask], 1), past_key_values=outputs.past_key_values
    )
    for row in range(3):
        whole = torch.cat([ids[row, mask[row].bool()], last[row, last_mask[row].bool()]])
        close(after.logits[row, last_mask[row].bool()], alone(model, whole)[-int(last_mask[row].sum()) :])


@torch.no_grad()
def test_sequences_packed_into_a_row_do_not_see_each_other(model, ids):
    lengths = [[3, 1, 20, 15], [39], [10, 10, 10]]
    positions = torch.zeros(3, TIME, dtype=torch.long)
    mask = torch.zeros(3, TIME, dtype=torch.long)
    for row, sizes in enumerate(lengths):
        mask[row, : sum(sizes)] = 1
        positions[row, : sum(sizes)] = torch.cat([torch.arange(size) for size in sizes])
    outputs = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
    assert outputs.past_key_values is None  # of which sequence would it be?
    for row, sizes in enumerate(lengths):
        real = slice(0, sum(sizes))
        for part, logits in zip(ids[row, real].split(sizes), outputs.logits[row, real].split(sizes), strict=True):
            close(logits, alone(model, part))
    state = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="give each sequence a row of its own"):
        model(input_ids=ids[:, :4], position_ids=torch.tensor([[4, 5, 0, 1]] * 3), past_key_values=state)


def test_gradients_are_finite_and_those_of_unpadded_rows(model, ids):
    mask = torch.tensor(MASKS["left"])

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    padded = gradients(model(input_ids=ids, attention_mask=mask).logits[mask.bool()].log_softmax(-1)[:, 3].sum())
    rows = [alone(model, ids[row, real]) for row, real in enumerate(mask.bool())]
    expected = gradients(torch.cat(rows).log_softmax(-1)[:, 3].sum())
    assert padded.keys() == expected.keys()
    for name, gradient in padded.items():
        assert bool(gradient.isfinite().all()), name
        close(gradient, expected[name], 1e-4)


def test_gates_that_close_have_finite_gradients():
    mixer = RodimusMixer(MODELS["rodimus"])
    with torch.no_grad():
        mixer.g_proj.bias.fill_(-200.0)  # g is 0 in float32, where g^tau has no derivative
    log_decay, write = mixer._gates(torch.randn(1, 4, 64))
    (write.sum() + log_decay.sum()).backward()
    assert bool(mixer.g_proj.weight.grad.isfinite().all()) and bool(mixer.tau_proj.weight.grad.isfinite().all())


def test_the_gates_of_the_arms():
    torch.manual_seed(0)
    c = torch.randn(2, 3, 64)
    mixers = {gates: RodimusMixer(RodimusConfig(**SIZES, gates=gates)) for gates in ("tempered", "untempered", "none")}
    for mixer in mixers.values():
        mixer.load_state_dict(mixers["tempered"].state_dict())
    g = torch.nn.functional.softplus(mixers["none"].g_proj(c))
    tau = mixers["none"].tau_proj(c).sigmoid()
    expected = {"tempered": (-g * tau, g**tau), "untempered": (-g, g), "none": (0 * g, 1 + 0 * g)}
    for gates, mixer in mixers.items():
        for values, others in zip(mixer._gates(c), expected[gates], strict=True):
            close(values, others)


def test_initial_weights():
    """The authors' initialisation survives transformers' own, which runs over every module."""
    torch.manual_seed(0)
    config = RodimusConfig(**(SIZES | {"hidden_size": 256, "state_size": 64}), block_type="rodimus_plus")
    layer = RodimusForCausalLM(config).model.layers[0]
    g = torch.nn.functional.softplus(layer.mixer.g_proj.bias)
    tau = layer.mixer.tau_proj.bias.sigmoid()
    assert 1e-3 <= float(g.min()) < 2e-3 and 5e-2 < float(g.max()) <= 1.001e-1  # log-uniform
    assert 1 / 16 <= float(tau.min()) < 0.12 and 0.8 < float(tau.max()) <= 0.9
    assert bool((layer.mixer.residual == 1).all())
    for part in (layer.mixer.q_proj, layer.mixer.k_proj, layer.mixer.g_proj, layer.mixer.v_up):
        bound = 2**-2.5 * math.sqrt(6 / sum(part.weight.shape))
        assert 0.95 * bound < float(part.weight.abs().max()) <= bound
    for part in (layer.mixer.out_proj, layer.self_attn.o_proj, layer.mlp.down_proj):
        bound = 1 / math.sqrt(3 * 2 * part.in_features)
        assert 0.95 * bound < float(part.weight.abs().max()) <= bound
    assert 0.019 < float(layer.mixer.x_proj.weight.std()) < 0.021
    assert layer.mlp.gate_proj.out_features == 344  # 4/3 of 256, rounded up to 8
    assert sum(part.numel() for part in layer.self_attn.initial_state(1, g).values()) == 1023 * 17 * 16


def test_a_folder_loads_without_code_of_its_own(model, ids, tmp_path):
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] in ("rodimus_torch", "rwkv6_torch") and "auto_map" not in stored
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


@torch.no_grad()
def test_generate_of_transformers_pads_as_it_likes(model, ids):
    mask = torch.tensor(MASKS["left"])
    tokens = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    for row, real in enumerate(mask.bool()):
        sequence = ids[row, real]
        for _ in range(6):
            sequence = torch.cat([sequence, alone(model, sequence)[-1:].argmax(-1)])
        assert tokens[row, TIME:].tolist() == sequence[-6:].tolist()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="hidden_size 36 is not num_attention_heads 8 times"):
        RodimusConfig(hidden_size=36, num_attention_heads=8)
    with pytest.raises(ValueError, match="hidden_size 36 is not a multiple of head_size 8"):
        RWKV6Config(hidden_size=36, head_size=8)


def test_the_shape_of_only_sports_lm_has_its_number_of_weights():
    with torch.device("meta"):
        model = RWKV6ForCausalLM(RWKV6Config())
    assert sum(weight.numel() for weight in model.parameters()) == 196_323_840


def test_rwkv_is_its_definition():
    """Time mixing token by token, written from the formulas: mixing, decay, bonus, norm by head."""
    torch.manual_seed(0)
    model = RWKV6ForCausalLM(MODELS["rwkv6"])
    enlarge(model)
    block = model.model.layers[0].time
    x = torch.randn(1, 7, 32)
    expected, states, before = [], torch.zeros(4, 8, 8), torch.zeros(32)
    for token in x[0]:
        d = before - token
        low = torch.tanh((token + d * block.mix_x) @ block.mix_down).view(5, 4)
        w, k, v, r, g = (token + d * (block.mix[i] + low[i] @ block.mix_up[i]) for i in range(5))
        decay = torch.exp(-torch.exp(block.decay + torch.tanh(w @ block.decay_down) @ block.decay_up)).view(4, 8)
        k, v, r = block.k_proj(k).view(4, 8), block.v_proj(v).view(4, 8), block.r_proj(r).view(4, 8)
        heads = []
        for head in range(4):
            written = torch.outer(k[head], v[head])
            heads.append(r[head] @ (states[head] + block.bonus[head][:, None] * written))
            states[head] = decay[head][:, None] * states[head] + written.detach()
        y = torch.stack(heads)
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 64e-5).sqrt()
        y = y.flatten() * block.norm.weight + block.norm.bias
        expected.append(block.o_proj(y * torch.nn.functional.silu(block.g_proj(g))))
        before = token
    out, after = block(x, Tokens(torch.tensor([7]), None, None), None)
    close(out[0], torch.stack(expected))
    close(after["memory"][0], states)
