"""The engines against naive forwards, one row at a time and without padding, and against each other."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from assets.make_untrained import reasoner_tokenizer
from policies import LoRA, Policy, PolicyParams
from rollouts import BatchPlan, EmbeddedEngine, SamplingParams, TransformersEngine, continuous_batching
from support.errors import ConfigError
from support.seeding import isolated_rng

PROMPTS = [[5, 6, 7, 8], [9], [4, 4, 11]]
ROWS = [{"id": i} for i in range(3)]
ENGINES = {"embedded": EmbeddedEngine, "transformers": TransformersEngine}
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32, "initializer_range": 0.4, "bos_token_id": None,
}  # fmt: skip
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


@pytest.fixture(scope="module", params=list(MODELS))
def policy(request, tmp_path_factory):
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("llama"))


def build(kind, folder, lora=None, **changes):
    torch.manual_seed(0)
    tokenizer = reasoner_tokenizer()
    config, model = MODELS[kind]
    extra = {"head_dim": 8} if kind == "qwen3" else {}
    model(
        config(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **{**SHAPE, **extra, **changes})
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Policy(PolicyParams(str(folder), lora=lora))


@pytest.fixture(params=[*ENGINES, "embedded, sharing prompts"])
def engine(request, monkeypatch):
    if request.param not in ENGINES:
        monkeypatch.setattr(continuous_batching, "SHARE_FROM", 0)
    return ENGINES[request.param.split(",")[0]]()


def roll(engine, policy, sampling, seed=1, **options):
    with isolated_rng(seed):
        return engine.generate(policy, PROMPTS, ROWS, 4, sampling, **options)


def naive(policy, batch, row, temperature=1.0, top_k=0, top_p=1.0):
    """Log-probs of one completion by one unpadded forward."""
    prompt = PROMPTS[row // 4]
    completion = batch.completion_ids[row, : int(batch.lengths[row])]
    ids = torch.cat([torch.tensor(prompt), completion])[None]
    logits = policy.model(ids).logits[0, len(prompt) - 1 : -1] / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        for position in logits:
            order = position.softmax(-1).argsort(descending=True)
            before = position.softmax(-1)[order].cumsum(0) - position.softmax(-1)[order]
            position[order[before >= top_p]] = -torch.inf
    return logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 4, 1.0), (1.0, 0, 0.8)]
)
@pytest.mark.parametrize("rows_at_once", [None, 5])
@torch.no_grad()
def test_behaviour_logprobs_are_those_of_the_sampled_distribution(
    engine, policy, temperature, top_k, top_p, rows_at_once
):
    batch = roll(engine, policy, SamplingParams(10, temperature, top_k=top_k, top_p=top_p), rows_at_once=rows_at_once)
    for row in range(12):
        expected = naive(policy, batch, row, temperature, top_k, top_p)
        assert torch.allclose(batch.behaviour_logprobs[row, : len(expected)], expected, atol=1e-5)
        ended = int(batch.completion_ids[row, len(expected) - 1]) in policy.eos_token_ids
        assert ended == (batch.finish_reasons[row] == "eos")
        assert ended or len(expected) == 10


@pytest.mark.parametrize("share_from", [0, 1000])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_both_engines_generate_the_same(policy, monkeypatch, share_from, temperature):
    monkeypatch.setattr(continuous_batching, "SHARE_FROM", share_from)
    for rows_at_once in (None, 3, 5):
        sampling = SamplingParams(20, temperature=temperature)
        ours, theirs = (
            roll(made(), policy, sampling, rows_at_once=rows_at_once) for made in (EmbeddedEngine, TransformersEngine)
        )
        assert torch.equal(ours.completion_ids, theirs.completion_ids) and ours.finish_reasons == theirs.finish_reasons
        assert torch.allclose(ours.behaviour_logprobs, theirs.behaviour_logprobs, atol=1e-5)


def test_greedy_completions_are_those_of_generate(policy):
    """Against `generate` as its users call it, one prompt at a time."""
    ours = roll(EmbeddedEngine(), policy, SamplingParams(20, temperature=0.0))
    for i, prompt in enumerate(PROMPTS):
        theirs = policy.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=20
        )[0]
        assert ours.completion_ids[4 * i, : int(ours.lengths[4 * i])].tolist() == theirs[len(prompt) :].tolist()


@pytest.mark.parametrize("share_from", [0, 1000])
def test_what_a_row_becomes_does_not_depend_on_its_batch(tmp_path, monkeypatch, share_from):
    """With a model that ends often, rows of very different lengths are compacted and refilled."""
    monkeypatch.setattr(continuous_batching, "SHARE_FROM", share_from)
    llama = build("llama", tmp_path)
    with torch.no_grad():
        llama.model.lm_head.weight[llama.eos_token_ids[0]] *= 3
    long = [[5 + i % 9] * (1 + i % 4) for i in range(30)]
    for seed in range(3):
        batches = []
        for rows_at_once in (None, 7, 1):
            with isolated_rng(seed):
                batches.append(
                    EmbeddedEngine().generate(llama, long, [{}] * 30, 3, SamplingParams(20), rows_at_once=rows_at_once)
                )
        assert len(set(batches[0].lengths.tolist())) > 5 and {"eos", "length"} == set(batches[0].finish_reasons)
        for other in batches[1:]:
            assert torch.equal(batches[0].completion_ids, other.completion_ids)
            assert torch.allclose(batches[0].behaviour_logprobs, other.behaviour_logprobs, atol=1e-5)


def test_samples_follow_the_seed(engine, llama):
    first, again, other = (roll(engine, llama, SamplingParams(6), seed).completion_ids for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize("top_k", [0, 3])
def test_sampled_frequencies_match_the_distribution(engine, llama, top_k):
    def exact(ids):
        logits = llama.model(torch.tensor([ids])).logits[0, -1]
        if top_k:
            logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
        return logits.softmax(-1)

    def distance(tokens, probabilities):
        return (torch.bincount(tokens, minlength=len(probabilities)) / len(tokens) - probabilities).abs().max()

    with isolated_rng(3), torch.no_grad():
        batch = engine.generate(llama, [[5, 6]], ROWS[:1], 4000, SamplingParams(2, top_k=top_k))
        first = batch.completion_ids[:, 0]
        assert distance(first, exact([5, 6])) < 0.04  # five standard deviations of a frequency near one half
        common = int(first[batch.completion_mask[:, 1]].mode().values)
        second = batch.completion_ids[first == common, 1]
        assert distance(second, exact([5, 6, common])) < 2.5 / len(second) ** 0.5


def test_forced_tokens_are_given_and_not_chosen(engine, llama):
    forced = [[], [10], [11, 12], []] * 3
    batch = roll(engine, llama, SamplingParams(8), forced=forced)
    with torch.no_grad():
        for row, given in enumerate(forced):
            length = int(batch.lengths[row])
            assert batch.completion_ids[row, : len(given)].tolist() == given
            assert batch.action_mask[row].tolist() == [
                len(given) <= i < length for i in range(batch.action_mask.shape[1])
            ]
            expected = naive(llama, batch, row)[len(given) :]
            assert torch.allclose(batch.behaviour_logprobs[row, len(given) : length], expected, atol=1e-5)
            assert not batch.behaviour_logprobs[row, : len(given)].any()
    with pytest.raises(ValueError, match="forced has 2 entries for 12"):
        roll(engine, llama, SamplingParams(8), forced=[[1], [2]])


def test_stop_strings_end_a_completion(engine, llama):
    free = roll(engine, llama, SamplingParams(12))
    inside_others = set("<pad><eos><user><assistant></think>")  # a stop string may also end within a token
    marks = tuple(
        {text for token in free.completion_ids[:, 2:5].flatten() if len(text := llama.tokenizer.decode(token)) == 1}
        - inside_others
    )
    stopped = roll(engine, llama, SamplingParams(12, stop=list(marks)))
    assert "stop" in stopped.finish_reasons
    for row, reason in enumerate(stopped.finish_reasons):
        text = llama.tokenizer.decode(stopped.completion_ids[row, : int(stopped.lengths[row])])
        assert text.endswith(marks) == (reason == "stop")
        tokens = [llama.tokenizer.decode(token) for token in stopped.completion_ids[row, : int(stopped.lengths[row])]]
        assert not set(tokens[:-1]) & set(marks)
    if isinstance(engine, EmbeddedEngine):  # its rows do not disturb each other
        width = stopped.completion_ids.shape[1]
        same = (free.completion_ids[:, :width] == stopped.completion_ids) | ~stopped.completion_mask
        assert same.all()


def test_adapters_act(tmp_path):
    policy = build("llama", tmp_path, LoRA(r=4, alpha=8))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
        batch = roll(EmbeddedEngine(), policy, SamplingParams(10))
        for row in range(12):
            expected = naive(policy, batch, row)
            assert torch.allclose(batch.behaviour_logprobs[row, : len(expected)], expected, atol=1e-5)
        with policy.model.disable_adapter():
            assert not torch.allclose(
                naive(policy, batch, 0), batch.behaviour_logprobs[0, : int(batch.lengths[0])], atol=1e-2
            )


def test_other_precisions_stay_near(llama):
    with torch.autocast("cpu", torch.bfloat16):
        assert not EmbeddedEngine().matches(llama)
        batch = roll(EmbeddedEngine(), llama, SamplingParams(10))
    with torch.no_grad():
        gaps = [
            float((naive(llama, batch, row) - batch.behaviour_logprobs[row, : int(batch.lengths[row])]).abs().mean())
            for row in range(12)
        ]
    assert 1e-5 < sum(gaps) / 12 < 0.1


def test_an_unsuitable_model_is_generated_by_transformers(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = reasoner_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=32,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = Policy(PolicyParams(str(tmp_path)))
    engine = EmbeddedEngine()
    with pytest.warns(UserWarning, match="GPT2LMHeadModel is built differently"):
        batch = roll(engine, policy, SamplingParams(6))
    assert torch.equal(batch.completion_ids, roll(TransformersEngine(), policy, SamplingParams(6)).completion_ids)


def test_a_model_that_decodes_differently_is_noticed(tmp_path, monkeypatch):
    policy = build("llama", tmp_path)
    policy.bare.config.rms_norm_eps = 0.5
    with pytest.warns(UserWarning, match="decodes differently"):
        roll(EmbeddedEngine(), policy, SamplingParams(4))


def test_bad_input_names_the_thing(engine, llama):
    with pytest.raises(ConfigError, match="context of 32"):
        engine.generate(llama, [[1] * 30], ROWS[:1], 2, SamplingParams(8))
    with pytest.raises(ConfigError, match="prompt column"):
        engine.generate(llama, [[]], ROWS[:1], 2, SamplingParams(8))
    with pytest.raises(ConfigError, match="group_size is 0"):
        BatchPlan(8, 0)
    with pytest.raises(ConfigError, match="does not divide"):
        BatchPlan(8, 4, updates_per_rollout=3)
    with pytest.raises(ConfigError, match="evenly"):
        BatchPlan(6, 4).describe(processes=4)
    with pytest.raises(ConfigError, match="sampling.top_p"):
        SamplingParams(top_p=0.0)
    with pytest.raises(ConfigError, match="sampling.stop"):
        SamplingParams(stop=[""])
    assert "32 rows per rollout, 16 on each of 2" in BatchPlan(8, 4, updates_per_rollout=2).describe(2)
