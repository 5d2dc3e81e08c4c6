"""The embedder: attention in both directions, exports, mining, domain tokens, the weight table, resume, refusals."""

import json

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from callbacks import Doctor, ExportPolicy, RolloutCheckpoint, WeightDifference
from callbacks.findings_preference import WINDOW
from callbacks.findings_vectors import collapsed_vectors, easy_negatives
from datamodules import Triplets
from datamodules.jargon import HELD_OUT, TRAINING, general, jargon
from lightning_modules import TripletEmbedder
from objectives import MultipleNegatives, TripletMargin
from policies import Embedder, LoRA, PolicyParams
from policies.embedder import fertility, split_words
from support.errors import ConfigError
from tests.helpers import ROOT, adamw, fit, quiet_trainer

TEXTS = ["restart the harq loop", "x", "who maintains the echo guard"]


def data(**options):
    return Triplets(**({"batch_size": 4, "train_size": 24, "val_size": 8, "seed": 3} | options))


def made(model, lora=None, **options):
    return TripletEmbedder(PolicyParams(model, lora=lora), **({"max_length": 64, "optimizer": adamw(3e-3)} | options))


def test_attention_in_both_directions_is_that_of_a_full_mask(reasoner):
    """Beside transformers' own layers with an explicit mask that hides nothing but padding."""
    embedder = Embedder(PolicyParams(reasoner), "mean", bidirectional=True).eval()
    plain = AutoModel.from_pretrained(reasoner).eval()
    for texts in (TEXTS[:1], TEXTS):  # without padding and with it
        ids, mask = embedder.encode(texts, 64)
        hidden_keys = torch.where(mask[:, None, None, :], 0.0, torch.finfo(torch.float32).min)
        full = hidden_keys.expand(-1, 1, ids.shape[1], -1)
        with torch.no_grad():
            hidden = plain(input_ids=ids, attention_mask=full, use_cache=False).last_hidden_state
            expected = normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)
            assert torch.allclose(embedder(ids, mask), expected, atol=1e-5)
    causal = Embedder(PolicyParams(reasoner), "mean").eval()
    assert not torch.allclose(causal.embed(TEXTS, 64), embedder.embed(TEXTS, 64), atol=1e-3)


@pytest.mark.parametrize("lora", [None, LoRA(r=2, alpha=4)])
def test_an_export_is_read_by_plain_transformers(lora, reasoner, tmp_path):
    module, folder = made(reasoner, lora, domain_tokens=3), tmp_path / "model"
    fit(module, 2, [ExportPolicy(str(folder), register=False)], data=data(), seed=0)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    expected = module.policy.embed(TEXTS, 64)
    with torch.no_grad():
        for text, vector in zip(TEXTS, expected, strict=True):
            hidden = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state
            assert torch.allclose(normalize(hidden[:, -1], dim=1)[0], vector, atol=1e-5)
    assert json.loads((folder / "1_Pooling/config.json").read_text())["pooling_mode_lasttoken"] is True
    again = Embedder(PolicyParams(str(folder)), "last").eval()
    assert torch.allclose(again.embed(TEXTS, 64), expected, atol=1e-5)


def test_an_instruction_stands_before_queries_only(reasoner):
    with_one, without = (Embedder(PolicyParams(reasoner), "last", instruction=text) for text in ("find: ", ""))
    assert torch.equal(with_one.embed(TEXTS, 64), without.embed(TEXTS, 64))
    assert torch.equal(with_one.embed(TEXTS, 64, queries=True), without.embed([f"find: {t}" for t in TEXTS], 64))


def test_domain_tokens_begin_as_means_and_lower_fertility(reasoner):
    plain = Embedder(PolicyParams(reasoner), "last")
    texts = [row[part] for row in jargon(40, 0, held_out=False) for part in ("anchor", "positive")]
    words = split_words(plain.tokenizer, texts, 5)
    counts = {word: sum(text.split().count(word) for text in texts) for text in texts for word in text.split()}
    assert len(words) == 5 and min(counts[word] for word in words) >= max(
        number for word, number in counts.items() if word not in words and len(word) > 1
    )
    embedder = Embedder(PolicyParams(reasoner), "last", domain_words=["harq", "loop"])
    (number,) = embedder.tokenizer("harq", add_special_tokens=False)["input_ids"]
    letters = [plain.tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "harq"]
    rows = plain.bare.get_input_embeddings().weight
    assert torch.allclose(embedder.bare.get_input_embeddings().weight[number], rows[letters].mean(0), atol=1e-6)
    assert fertility(embedder.tokenizer, ["harq loop"]) < fertility(plain.tokenizer, ["harq loop"]) == 4.5
    assert len(embedder.ids_of("harqs", 9)) == 5, "a part of a longer word became the token"


def test_mined_negatives_are_the_most_similar_of_other_concepts(reasoner):
    module, rows = made(reasoner), jargon(20, 0, held_out=False)
    module.configure_model()
    mined = module.mine(rows)
    queries = module.policy.embed([row["anchor"] for row in rows], 64, queries=True)
    passages = module.policy.embed([row["positive"] for row in rows], 64)
    for place, row in enumerate(rows):
        similar = {
            other["positive"]: float(queries[place] @ passages[number])
            for number, other in enumerate(rows)
            if other["concept"] != row["concept"]
        }
        assert similar[mined[row["id"]]] == pytest.approx(max(similar.values()), abs=1e-6)


@pytest.mark.parametrize("mine_every", [0, 3])
def test_a_resumed_run_ends_with_the_same_bits(mine_every, reasoner, tmp_path):
    def run(steps, ckpt_path=None):
        module = made(reasoner, mine_every=mine_every, domain_tokens=2, loss=MultipleNegatives())
        saving = [RolloutCheckpoint(every_n_rollouts=2, folder=str(tmp_path))]
        fit(module, steps, saving, data=data(), seed=0, folder=tmp_path, ckpt_path=ckpt_path)
        return module

    whole = run(4)
    resumed = run(4, tmp_path / "rollout_000002.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (resumed._mined == whole._mined != {}) == bool(mine_every)


@pytest.mark.parametrize("lora", [None, LoRA(r=2, alpha=4, target_modules=["q_proj"])])
def test_the_table_says_which_tensors_moved(lora, reasoner, tmp_path):
    module = made(reasoner, lora)
    fit(module, 2, [WeightDifference()], data=data(), seed=0, folder=tmp_path)
    (path,) = tmp_path.rglob("weight_difference.json")
    table = {row["name"]: row for row in json.loads(path.read_text())}
    plain = AutoModel.from_pretrained(reasoner)
    assert table.keys() == dict(plain.named_parameters()).keys()
    moved = {name for name, row in table.items() if row["largest"] > 0}
    assert moved == ({name for name in table if "q_proj" in name} if lora else set(table))
    name = "layers.0.self_attn.q_proj.weight"
    after = dict(module.policy.bare.named_parameters()).get(name)
    if after is not None:
        before = plain.get_parameter(name)
        assert table[name]["relative"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)


def test_held_out_rows_are_scored_by_domain(reasoner):
    module = made(reasoner)
    trainer = quiet_trainer(1, validate_every=1)
    trainer.fit(module, datamodule=data())
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    module.eval()
    rows = jargon(8, 3, held_out=True)
    vectors = [module.policy.embed([row[part] for row in rows], 64) for part in ("anchor", "positive", "negative")]
    right = ((vectors[0] * vectors[1]).sum(1) > (vectors[0] * vectors[2]).sum(1)).float().mean()
    assert metrics["val/accuracy@0"] == pytest.approx(float(right))
    assert {"val/accuracy@0.1", "val/accuracy@0.3", "val/recall@1", "val/accuracy@0/general"} <= metrics.keys()
    assert len(trainer.predict(module, datamodule=data())[0]) == 4


def test_held_out_phrasings_are_new_and_negatives_hard():
    assert not set(TRAINING) & set(HELD_OUT)
    for row in jargon(30, 1, held_out=True):
        words = {part: set(row[part].split()) for part in ("anchor", "positive", "negative")}
        assert len(words["anchor"] & words["negative"]) > len(words["anchor"] & words["positive"])
    assert all(row["domain"] == "general" for row in general(5, 0))


def test_files_are_split_by_concept(tmp_path):
    path = tmp_path / "triplets.jsonl"
    rows = [{"query": f"a{n}", "positive": "b", "negative": "c", "concept": f"k{n % 9}"} for n in range(90)]
    path.write_text("\n".join(map(json.dumps, rows)))
    triplets = data(source=str(path), columns={"anchor": "query"}, val_share=0.3, control="")
    triplets.setup("fit")
    concepts = [{row["concept"] for row in part} for part in (triplets.train_data, triplets.val_data)]
    assert all(concepts) and not concepts[0] & concepts[1] and "prompt" not in triplets.train_data[0]


def steps(**values):
    return [{"active": 0.5, "distance/positive": 0.2, "distance/negative": 0.4} | values] * (2 * WINDOW)


def test_findings_and_their_thresholds(reasoner):
    assert collapsed_vectors(None, steps()) is None and easy_negatives(None, steps()) is None
    assert "nearly the same vector" in collapsed_vectors(None, steps(**{"distance/negative": 0.001}))
    assert "no triplet was active" in easy_negatives(None, steps(active=0.0))
    doctor = Doctor()
    fit(made(reasoner, optimizer=adamw(0.0)), 2 * WINDOW, [doctor], data=data(batch_size=2), seed=0)
    assert len(doctor.steps) == 2 * WINDOW


def test_mistakes_are_named(reasoner):
    with pytest.raises(ConfigError, match=r"model\.mine_every is -1"):
        made(reasoner, mine_every=-1)
    with pytest.raises(ConfigError, match="needs a text as 'negative' in every row, but row '7'"):
        module = made(reasoner)
        module.configure_model()
        module.triplet_vectors([{"id": "7", "anchor": "a", "positive": "b"}])
    with pytest.raises(ConfigError, match=r"data\.val_share 1"):
        data(val_share=1)
    assert TripletMargin().margin == 0.3 and (ROOT / "configs/t_vec.yaml").is_file()
