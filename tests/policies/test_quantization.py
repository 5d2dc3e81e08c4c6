"""Quantisers against slow references: grids by brute force, GPTQ with explicit inverses, a cache that stores rounded
keys and values, and the float model in every basis."""

from itertools import product

import pytest
import torch
from transformers import DynamicCache

from benchmarks.tiny_models import Family, build
from policies import LoRA, Policy, PolicyParams, PromptGroups
from policies.quantization import Bits, Grid, QuantizationMethod, input_statistics, quantized, whole_model_bits
from policies.quantization.cache import by_token
from policies.quantization.frames import Frame, rotation
from policies.quantization.gptq import gptq, output_errors
from policies.quantization.int8 import use_int8_layers
from policies.quantization.layers import rounded_inputs
from policies.quantization.outliers import inject_outliers
from policies.quantization.statistics import layers_of, matrix
from support.errors import ConfigError

PROMPTS = ["12+34=?", "5+6=?", "981+27=?", "12+30=?", "4+4=?"]
RTN, GPTQ = QuantizationMethod("RTN", group=32), QuantizationMethod("GPTQ", group=32, rounding="gptq")


@pytest.fixture(scope="module")
def policy():
    return Policy(PolicyParams("assets/tiny_reasoner")).eval()


@pytest.fixture(scope="module")
def sequences(policy):
    return [policy.encode(prompt) + policy.encode("1+2+0=3, 4+1+0=5") for prompt in PROMPTS]


@pytest.fixture(scope="module")
def statistics(policy, sequences):
    return input_statistics(policy, sequences)


def logits(policy, ids):
    with torch.no_grad():
        return policy.bare(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def snapshot(policy):
    return {name: weight.clone() for name, weight in policy.state_dict().items()}


def mean_error(policy, statistics, bits, method):
    """Mean over the layers of the outputs' error on the calibration data."""
    with quantized(policy, Bits.parse(bits), method, statistics) as reports:
        return sum(report.output_error for report in reports) / len(reports)


# ---- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits, symmetric, group", list(product([2, 3, 4, 8], [False, True], [None, 5])))
def test_rounding_finds_the_nearest_point_of_an_even_grid_that_holds_zero_and_the_range(bits, symmetric, group):
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(3, 13, generator=generator).double() * 10 ** torch.randn(3, 1, generator=generator).double()
    values[1] = values[1].abs() + 0.1  # all of one sign
    rounded = Grid(bits, group, symmetric).quantized(values)
    for row, result in zip(values.tolist(), rounded.tolist(), strict=True):
        for start in range(0, 13, group or 13):
            part = row[start : start + (group or 13)]
            low, high = min(*part, 0.0), max(*part, 0.0)
            if symmetric:
                step = max(-low, high) / (2 ** (bits - 1) - 1)
                points = [step * number for number in range(-(2 ** (bits - 1)), 2 ** (bits - 1))]
            else:
                step = (high - low) / (2**bits - 1)
                shift = min(range(2**bits), key=lambda number: abs(step * number + low))  # the point that becomes 0
                points = [step * (number - shift) for number in range(2**bits)]
            for value, chosen in zip(part, result[start : start + (group or 13)], strict=True):
                nearest = min(abs(value - point) for point in points)
                assert abs(value - chosen) == pytest.approx(nearest, rel=1e-9, abs=1e-12 * step)
                assert min(abs(chosen - point) for point in points) < 1e-9 * step


def test_groups_without_values_and_without_range_stay_what_they_are():
    assert torch.equal(Grid(4).quantized(torch.zeros(2, 6)), torch.zeros(2, 6))
    assert torch.equal(Grid(3, symmetric=True).quantized(torch.full((1, 4), -2.0)), torch.full((1, 4), -2.0))
    tiny = torch.full((1, 4), 1e-45)
    assert Grid(2).quantized(tiny).isfinite().all()


def test_stored_bits_count_scales_and_zero_points_of_every_group():
    assert Grid(4, 128).stored_bits(10, 344) == pytest.approx(4 + 3 * (16 + 4) / 344)
    assert Grid(3, None, symmetric=True).stored_bits(7, 100) == pytest.approx(3 + 16 / 100)
    assert Grid(2, 500).stored_bits(7, 100) == pytest.approx(2 + (16 + 2) / 100)


def test_a_clip_search_never_has_a_larger_error_than_the_whole_range():
    values = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)) ** 3
    grid = Grid(3, 16)
    groups = grid.grouped(values)
    gaps = [(grid.rounded(groups, s) - groups).square().sum(-1) for s in (grid.searched(groups), grid.scales(groups))]
    assert (gaps[0] <= gaps[1]).all() and (gaps[0] < gaps[1]).any()


@pytest.mark.parametrize("text", ["W4", "W4-A16", "W1-A16-KV16", "W4-A16-KV9", "w4-a16-kv16", "W4-A16-KV16 "])
def test_bits_that_cannot_be_read_are_refused(text):
    with pytest.raises(ConfigError, match="write the bits"):
        Bits.parse(text)


# ---- GPTQ ------------------------------------------------------------------------------------------------------------


def direct_gptq(weight, hessian, grid, order, damping):
    """Column by column, the inverse of what is left of H computed anew for every column."""
    columns = weight.shape[1]
    scales = grid.scales(grid.grouped(weight))
    size = grid.grouped(weight).shape[-1]
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(columns, dtype=weight.dtype)
    left, result, remaining = weight.clone(), torch.empty_like(weight), list(order)
    while remaining:
        column = remaining[0]
        inverse = torch.linalg.inv(damped[remaining][:, remaining])
        scale, zero = (part[:, column // size, 0] for part in scales)
        low, high = grid.limits
        result[:, column] = scale * (((left[:, column] / scale).round() + zero).clamp(low, high) - zero)
        error = (left[:, column] - result[:, column]) / inverse[0, 0]
        left[:, remaining] -= error[:, None] * inverse[0]
        remaining = remaining[1:]
    return result


@pytest.mark.parametrize("columns, group, act_order", [(10, 4, False), (10, 4, True), (7, None, True), (150, 32, True)])
def test_gptq_equals_the_direct_form_with_explicit_inverses(columns, group, act_order):
    generator = torch.Generator().manual_seed(columns)
    mixing = torch.randn(columns, columns, generator=generator).double()
    inputs = torch.randn(60, columns, generator=generator).double() @ mixing
    hessian, weight = 2 * inputs.T @ inputs / 60, torch.randn(3, columns, generator=generator).double()
    grid = Grid(3, group)
    order = hessian.diagonal().argsort(descending=True).tolist() if act_order else range(columns)
    expected = direct_gptq(weight, hessian, grid, order, 0.01)
    assert torch.allclose(gptq(weight, hessian, grid, act_order=act_order), expected, atol=1e-8)


@pytest.mark.parametrize("bits", [2, 4])
def test_no_output_has_a_larger_error_with_gptq_than_rounded_to_the_nearest(policy, statistics, bits):
    layers = layers_of(policy)
    for shared in statistics[4:8]:
        weight = matrix(layers[shared.layers[0]]).detach()
        errors = [
            output_errors(method.rounded(weight, shared, Frame(), bits) - weight, shared.hessian)
            for method in (GPTQ, RTN)
        ]
        assert (errors[0] <= errors[1] * (1 + 1e-6)).all() and errors[0].sum() < errors[1].sum()


def test_inputs_that_are_always_zero_pass_no_error_on():
    hessian = torch.diag(torch.tensor([2.0, 0.0, 1.0]))
    weight = torch.tensor([[0.3, -0.7, 1.0]])
    assert torch.equal(gptq(weight, hessian, Grid(2)), Grid(2).quantized(weight))


def test_moments_that_are_not_finite_are_refused():
    with pytest.raises(ConfigError, match="cannot factorise"):
        gptq(torch.ones(1, 2), torch.full((2, 2), torch.nan), Grid(4))


# ---- bases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 12, 32, 43, 344])
def test_a_rotation_is_orthogonal_and_spreads_a_single_input(size):
    turn = rotation(size, torch.device("cpu"))
    assert torch.allclose(turn @ turn.T, torch.eye(size), atol=1e-5)
    assert float(turn.abs().max()) <= (2 / size) ** 0.5 + 1e-6


@pytest.mark.parametrize("method", [
    QuantizationMethod("QuaRot", rotation=True),
    QuantizationMethod("SmoothQuant", scaling="smoothquant", group=None),
    QuantizationMethod("AWQ and rotation", scaling="awq", rotation=True, group=32),
])  # fmt: skip
def test_a_change_of_basis_leaves_the_logits_of_the_float_model(policy, statistics, sequences, method):
    before, layers, saved = logits(policy, sequences[0]), layers_of(policy), snapshot(policy)
    handles = []
    for shared in statistics:
        weights = [matrix(layers[name]).detach() for name in shared.layers]
        frame = method.frame(shared, weights, Bits(4, 16, 16))
        assert frame.scale is not None or frame.rotation is not None
        assert torch.allclose(frame.inputs_back(frame.inputs(shared.sample)), shared.sample, atol=1e-4)
        for name, weight in zip(shared.layers, weights, strict=True):
            layers[name].weight.data.copy_(frame.weight(weight))
            handles.append(layers[name].register_forward_pre_hook(lambda _, args, f=frame: (f.inputs(args[0]),)))
    after = logits(policy, sequences[0])
    for handle in handles:
        handle.remove()
    policy.load_state_dict(saved)
    assert not torch.equal(before, after) and torch.allclose(before, after, atol=1e-4)


def test_outliers_leave_the_float_model_and_rotation_helps_only_with_them(sequences):
    policy = Policy(PolicyParams("assets/tiny_reasoner")).eval()
    plain, rotated = QuantizationMethod("plain", group=None), QuantizationMethod("rotated", group=None, rotation=True)
    before = logits(policy, sequences[0])
    ratios, kurtoses = [], []
    for factor in (1.0, 64.0):
        if factor > 1:
            inject_outliers(policy, factor)
            assert torch.allclose(before, logits(policy, sequences[0]), atol=1e-4)
        statistics = input_statistics(policy, sequences)
        errors = [mean_error(policy, statistics, "W16-A4-KV16", method) for method in (plain, rotated)]
        ratios.append(errors[1] / errors[0])
        with quantized(policy, Bits(16, 4, 16), rotated, statistics) as reports:
            kurtoses.append(
                [sum(values) for values in zip(*((r.kurtosis, r.kurtosis_after) for r in reports), strict=True)]
            )
    assert ratios[1] < 0.5 * ratios[0], ratios
    assert kurtoses[1][0] > 3 * kurtoses[0][0] and kurtoses[1][1] < kurtoses[1][0] / 3


def test_awq_never_has_a_larger_error_than_rounding_to_the_nearest_and_groups_not_than_channels(policy, statistics):
    channels, awq = QuantizationMethod("channels", group=None), QuantizationMethod("AWQ", group=32, scaling="awq")
    first = statistics[:4]
    errors = [mean_error(policy, first, "W3-A16-KV16", method) for method in (GPTQ, RTN, channels)]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert mean_error(policy, first, "W3-A16-KV16", awq) <= errors[1]


# ---- the whole model -------------------------------------------------------------------------------------------------


def test_sixteen_bits_are_the_float_model_and_every_context_leaves_it_as_it_was(policy, statistics, sequences):
    before, weights = logits(policy, sequences[0]), snapshot(policy)
    attention = policy.bare.config._attn_implementation
    everything = QuantizationMethod("all", rounding="gptq", scaling="awq", rotation=True, clip_search=True)
    with quantized(policy, Bits(), everything, statistics) as reports:
        assert reports == [] and torch.equal(logits(policy, sequences[0]), before)
        assert whole_model_bits(policy, reports) == 16
    with quantized(policy, Bits(3, 4, 4), everything, statistics[:4]) as reports:
        assert (logits(policy, sequences[0]) - before).abs().max() > 0.1
        assert [report.name for report in reports] == list(layers_of(policy))[:7]
    with pytest.raises(RuntimeError, match="within"), quantized(policy, Bits(3, 4, 4), RTN, statistics):
        raise RuntimeError("within")
    after = snapshot(policy)
    assert all(torch.equal(weight, after[name]) for name, weight in weights.items())
    assert policy.bare.config._attn_implementation == attention
    assert torch.equal(logits(policy, sequences[0]), before)


def test_statistics_are_those_of_unpadded_sequences_and_shared_by_layers_with_the_same_inputs(
    policy, sequences, statistics
):
    assert [len(shared.layers) for shared in statistics] == [3, 1, 2, 1] * 4
    assert all(shared.tokens == sum(map(len, sequences)) for shared in statistics)
    seen = {}
    name = statistics[3].layers[0]
    handle = layers_of(policy)[name].register_forward_pre_hook(lambda _, args: seen.setdefault(len(seen), args[0][0]))
    for sequence in sequences:
        logits(policy, sequence)
    handle.remove()
    inputs = torch.cat([seen[number] for number in range(len(sequences))]).double()
    assert torch.allclose(statistics[3].hessian.double(), 2 * inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-5)
    assert torch.allclose(statistics[3].abs_max.double(), inputs.abs().amax(0), rtol=1e-5)


def test_moments_and_bases_keep_float32_where_layers_compute_in_bfloat16(sequences):
    half, seen = Policy(PolicyParams("assets/tiny_reasoner", compute="bfloat16")).eval(), []
    layer = layers_of(half)["model.layers.0.mlp.down_proj"]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1).double()))
    hessian = input_statistics(half, sequences[:2])[3].hessian.double()
    handle.remove()
    inputs = torch.cat(seen)
    assert torch.allclose(hessian, 2 * inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-6 * float(hessian.max()))
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    frame, rounding = Frame(rotation=rotation(32, states.device)), by_token(Grid(4), rotated=True)
    exact = rounded_inputs(states, Grid(4), frame), rounding(states)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = rounded_inputs(states, Grid(4), frame), rounding(states)
    assert all(torch.equal(one, other) for one, other in zip(exact, under_autocast, strict=True))


def test_the_sample_of_inputs_has_all_positions_of_sequences_of_one_length(policy):
    """The first layer's inputs depend on the token alone, and every position has a token of its own."""
    sample = input_statistics(policy, [list(range(3, 15))] * 64)[0].sample
    assert len(sample) == 256 and len(sample.unique(dim=0)) == 12


def test_activations_are_rounded_by_token_before_the_layer(policy, statistics, sequences):
    layer, seen = layers_of(policy)["model.layers.0.self_attn.q_proj"], []
    method = QuantizationMethod("clipped", activation_clip=0.9)
    with quantized(policy, Bits(16, 4, 16), method, statistics):
        handle = layer.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
        logits(policy, sequences[0])
        handle.remove()
    logits_hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(policy, sequences[0])
    logits_hook.remove()
    (rounded, output), original = seen
    step = 0.9 * original.abs().amax(-1, keepdim=True) / 7
    assert torch.allclose(rounded, (original / step).round().clamp(-8, 7) * step, atol=1e-6)
    assert torch.allclose(output, rounded @ layer.weight.T, atol=1e-6)


class RoundedCache(DynamicCache):
    """Stores keys and values rounded, one vector after the other."""

    def __init__(self, grid, turn):
        super().__init__()
        self.grid, self.turn = grid, turn

    def slow(self, states):
        result = torch.empty_like(states)
        for place in product(*(range(size) for size in states.shape[:-1])):
            vector = states[place].double() @ self.turn
            parts = []
            for part in vector.split(self.grid.group):
                low, high = self.grid.clip * min(float(part.min()), 0.0), self.grid.clip * max(float(part.max()), 0.0)
                step = (high - low) / (2**self.grid.bits - 1)
                zero = round(-low / step)
                parts.append(torch.tensor([
                    step * (min(max(round(float(value) / step) + zero, 0), 2**self.grid.bits - 1) - zero)
                    for value in part
                ]).double())  # fmt: skip
            result[place] = (torch.cat(parts) @ self.turn.T).float()
        return result

    def update(self, key_states, value_states, layer_idx, *rest, **options):
        return super().update(self.slow(key_states), self.slow(value_states), layer_idx, *rest, **options)


@pytest.mark.parametrize("rotated", [False, True])
def test_a_quantised_cache_equals_one_that_stores_rounded_keys_and_values(policy, sequences, rotated):
    """Token by token with the slow cache, in one plain forward, and packed with other completions of the prompt."""
    method = QuantizationMethod("KV", cache_group=8, cache_clip=0.95, rotation=rotated)
    ids = sequences[0][:12]
    turn = rotation(32, torch.device("cpu")).double() if rotated else torch.eye(32).double()
    cache = RoundedCache(method.cache_grid(4), turn)
    with torch.no_grad():
        steps = [
            policy.bare(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, 0]
            for token in ids
        ]
    expected = torch.stack(steps)
    groups = PromptGroups.of([ids[:5]], [ids[5:], ids[6:9]], policy.pad_token_id, policy.device, owner=[0, 0])
    policy.check([ids])
    with quantized(policy, Bits(16, 16, 4), method, []), torch.no_grad():
        plain, packed = logits(policy, ids), policy.logprobs(groups)[0]
    assert torch.allclose(plain, expected, atol=1e-3) and (plain - logits(policy, ids)).abs().max() > 0.05
    of_tokens = expected[4:-1].log_softmax(-1).gather(1, torch.tensor(ids[5:])[:, None])[:, 0]
    assert policy.scoring == "packed" and torch.allclose(packed[0], of_tokens, atol=1e-3)


def test_keys_by_channel_are_rounded_before_their_positions_with_ranges_of_the_calibration(
    policy, statistics, sequences
):
    name = "model.layers.1.self_attn.k_proj"
    layer, seen = layers_of(policy)[name], []
    sample = next(shared.sample for shared in statistics if name in shared.layers)
    with quantized(policy, Bits(16, 16, 3), QuantizationMethod("KVQuant", keys="channel"), statistics):
        handle = layer.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
        logits(policy, sequences[0])
        handle.remove()
    inputs, rounded = seen[0]
    calibration, keys = (sample @ layer.weight.T).detach(), (inputs[0] @ layer.weight.T).detach()
    for channel in range(0, keys.shape[1], 17):
        low, high = float(calibration[:, channel].min().clamp(max=0)), float(calibration[:, channel].max().clamp(min=0))
        step = (high - low) / 7
        points = torch.tensor([step * (number - round(-low / step)) for number in range(8)])
        nearest = points[(keys[:, channel, None] - points).abs().argmin(1)]
        assert torch.allclose(rounded[0, :, channel], nearest, atol=1e-4)


def test_integer_layers_compute_what_fake_quantisation_does(statistics, sequences):
    policy = Policy(PolicyParams("assets/tiny_reasoner")).eval()
    method = QuantizationMethod("W8A8", group=None, symmetric=True)
    with quantized(policy, Bits(8, 8, 16), method, statistics):
        expected = logits(policy, sequences[0])
    plain = logits(policy, sequences[0])
    assert use_int8_layers(policy) == 28
    difference = (logits(policy, sequences[0]) - expected).abs().max()
    assert difference < 0.1 * (expected - plain).abs().max()


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("lora", marks=pytest.mark.long)])
def test_other_layers_and_merged_adapters_are_quantised(kind, tmp_path):
    if kind == "gpt2":
        build(Family("gpt2"), tmp_path)
        policy = Policy(PolicyParams(str(tmp_path))).eval()
    else:
        policy = Policy(PolicyParams("assets/tiny_reasoner", lora=LoRA(r=2))).eval()
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(0.01)
        policy.model.merge_adapter()
    ids = list(range(3, 15))
    before, statistics = logits(policy, ids), input_statistics(policy, [ids])
    with quantized(policy, Bits(8, 8, 8), RTN, statistics) as reports:
        gap = float((logits(policy, ids) - before).abs().max() / before.abs().max())
        assert {report.name for report in reports} == layers_of(policy).keys() and 0 < gap < 0.2
        assert 8 < whole_model_bits(policy, reports) < 16
    assert torch.equal(logits(policy, ids), before)


def test_models_whose_cache_cannot_be_quantised_are_refused(policy, statistics):
    policy.bare.config._attn_implementation, before = "eager", policy.bare.config._attn_implementation
    try:
        with pytest.raises(ConfigError, match="set KV16"), quantized(policy, Bits(16, 16, 4), RTN, statistics):
            pass
    finally:
        policy.bare.config._attn_implementation = before


@pytest.mark.parametrize("settings", [{"name": "a/b"}, {"group": 0}, {"alpha": 2.0}, {"cache_clip": 0.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="the method"):
        QuantizationMethod(**({"name": "x"} | settings))


def test_methods_that_do_the_same_at_some_bits_are_told_apart_from_others():
    assert RTN.acting(Bits(16, 16, 4)) == GPTQ.acting(Bits(16, 16, 4))
    assert RTN.acting(Bits(4, 16, 16)) != GPTQ.acting(Bits(4, 16, 16))
