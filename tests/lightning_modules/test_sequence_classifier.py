"""The sequence classifier: pooling beside a loop, scores beside scikit-learn's, exports, resume, refusals."""

import json

import pytest
import torch
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from transformers import AutoModelForTextEncoding, AutoTokenizer, BertConfig, BertModel

from assets.make_untrained import reasoner_tokenizer
from callbacks import ConfusionMatrix, Doctor, ExportPolicy, RolloutCheckpoint
from callbacks.findings_classes import CUT, cut_texts, one_class
from callbacks.findings_preference import WINDOW
from datamodules import AuthorshipPrograms
from lightning_modules import SequenceClassifier
from objectives import Confusion
from policies import Classifier, LoRA, PolicyParams, TextEncoder
from policies.encoder import pooled
from support.errors import ConfigError
from tests.helpers import ROOT, adamw, fit, quiet_trainer

ENCODER = str(ROOT / "assets/tiny_encoder")
LABELS = ["alder", "birch", "cedar", "elm", "fir"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """An untrained encoder of the BERT family, whose tokenizer has no special tokens around texts."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(reasoner_tokenizer()), max_position_embeddings=64, **sizes)).save_pretrained(
        folder
    )
    reasoner_tokenizer().save_pretrained(folder)
    return str(folder)


def data(**options):
    return AuthorshipPrograms(size=60, batch_size=4, split="random", **({"seed": 3} | options))


def made(model=ENCODER, **options):
    module = SequenceClassifier(
        PolicyParams(model, lora=options.pop("lora", None)),
        **({"max_length": 48, "head_width": 8, "optimizer": adamw(1e-2)} | options),
    )
    return module


def test_pooling_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 6, 3, generator=generator)
    lengths = [6, 1, 4, 2]
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    for pooling in ("first", "mean", "last"):
        for row, length in enumerate(lengths):
            tokens = [hidden[row, place] for place in range(length)]
            expected = {"first": tokens[0], "last": tokens[-1], "mean": sum(tokens) / length}[pooling]
            assert torch.allclose(pooled(hidden, mask, pooling)[row], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["encoder of an encoder-decoder", "encoder", "decoder"])
def test_a_text_has_the_same_vector_in_any_batch(kind, bert, reasoner):
    model = {"encoder": bert, "decoder": reasoner}.get(kind, ENCODER)
    encoder = TextEncoder(PolicyParams(model), "last" if kind == "decoder" else "first").eval()
    texts = ["int i = 0;", "x", "for (int i = 0; i < 9; i++) { x += i; }"]
    with torch.no_grad():
        together = encoder(*encoder.encode(texts, 48))
        for text, vector in zip(texts, together, strict=True):
            assert torch.allclose(encoder(*encoder.encode([text], 48))[0], vector, atol=1e-5)
    assert not any("decoder" in name or "pooler" in name for name, _ in encoder.named_parameters())


def test_the_vector_is_that_of_plain_transformers():
    encoder = TextEncoder(PolicyParams(ENCODER), "first").eval()
    plain, tokenizer = AutoModelForTextEncoding.from_pretrained(ENCODER), AutoTokenizer.from_pretrained(ENCODER)
    text = "int main(void) { return 0; }"
    with torch.no_grad():
        expected = plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0]
        assert torch.allclose(encoder(*encoder.encode([text], 48))[0], expected, atol=1e-6)
    assert tokenizer.decode(encoder.ids_of(text, 48)) == f"<s>{text}</s>"
    assert [len(encoder.ids_of(text, limit)) for limit in (3, 5)] == [3, 5]
    assert encoder.ids_of("</s>", 48).count(tokenizer.eos_token_id) == 1, "a program ended the text"


def test_scores_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    true = torch.randint(4, (50,), generator=generator)
    predicted = torch.where(torch.rand(50, generator=generator) < 0.5, true, true.clamp(max=2))
    counts = torch.zeros(4, 4)
    for one, other in zip(true.tolist(), predicted.tolist(), strict=True):
        counts[one, other] += 1
    scores = Confusion(counts, list("abcd")).scores()
    expected = precision_recall_fscore_support(true, predicted, average="weighted", zero_division=0)
    assert [scores[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected[:3])
    assert scores["accuracy"] == pytest.approx(accuracy_score(true, predicted))


def test_the_hardest_pair_is_confused_in_both_directions():
    counts = torch.tensor([[8.0, 2, 0], [3, 7, 0], [4, 0, 6]])
    assert Confusion(counts, ["a", "b", "c"]).hardest_pair() == ("a", "b", pytest.approx((0.2 + 0.3) / 2))


@pytest.mark.parametrize("lora", [None, LoRA(r=2, alpha=4)])
def test_it_learns_exports_and_starts_from_its_export(lora, tmp_path):
    module, folder = made(lora=lora, labels=LABELS), tmp_path / "model"
    fit(module, 3, [ExportPolicy(str(folder), register=False)], data=data(), seed=0)
    rows = data_rows()
    with torch.no_grad():
        again = Classifier(PolicyParams(str(folder)), None, "first", 8).eval()
        module.eval()
        assert torch.allclose(again(*again.encode([rows[0]["text"]], 48)), module.logits(rows[:1]), atol=1e-5)
    assert again.labels == LABELS and (folder / "seen_prompts.json").is_file()
    plain = AutoModelForTextEncoding.from_pretrained(folder).state_dict()
    assert all(torch.equal(plain[name], weight) for name, weight in again.backbone.state_dict().items())
    with pytest.raises(ConfigError, match="has the classes"):
        Classifier(PolicyParams(str(folder)), ["x", "y"], "first", 8)
    with pytest.raises(ConfigError, match="Set model.head_width as in its run"):
        Classifier(PolicyParams(str(folder)), None, "first", 9)


def data_rows():
    prepared = data()
    prepared.setup("fit")
    return prepared.train_data


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    def run(steps, ckpt_path=None):
        module = made(head_dropout=0.0)
        saving = [RolloutCheckpoint(every_n_rollouts=2, folder=str(tmp_path))]
        fit(module, steps, saving, data=data(), seed=0, folder=tmp_path, ckpt_path=ckpt_path)
        return module

    whole = run(4)
    resumed = run(4, tmp_path / "rollout_000002.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    loaded = SequenceClassifier.load_from_checkpoint(
        tmp_path / "rollout_000004.ckpt", policy=PolicyParams(ENCODER), head_width=8
    )
    assert loaded.labels == whole.labels and torch.equal(loaded.policy.head[0].weight, whole.policy.head[0].weight)


def test_weights_stay_float32_when_bfloat16_computes(tmp_path):
    module = made(optimizer=adamw(1e-6))
    module.configure_callbacks = lambda: []
    module.labels = LABELS
    module.configure_model()
    before = module.policy.head[0].weight.detach().clone()
    fit(module, 1, data=data(), seed=0, precision="bf16-mixed")
    moved = module.policy.head[0].weight.detach()
    assert {weight.dtype for weight in module.parameters()} == {torch.float32} and not torch.equal(before, moved)
    unchanged = (before.bfloat16() == moved.bfloat16()).float().mean()
    assert unchanged > 0.9, "in bfloat16 the step would have been lost"
    with pytest.raises(ConfigError, match=r"small updates are lost in rounding.*bf16-mixed"):
        SequenceClassifier(PolicyParams(ENCODER, dtype="bfloat16"))


def test_validation_and_test_log_the_matrix(tmp_path, monkeypatch):
    logged = {}

    class Client:
        def log_figure(self, run, figure, name):
            logged[name] = figure.axes[0].get_title()

        def log_dict(self, run, table, name):
            logged[name] = table

    monkeypatch.setattr("callbacks.confusion.mlflow_runs", lambda trainer: [(Client(), "run")])
    module, programs = made(), data()
    trainer = quiet_trainer(2, [ConfusionMatrix()], validate_every=2)
    trainer.fit(module, datamodule=programs)
    trainer.test(module, datamodule=programs, verbose=False)
    assert sorted(logged) == [
        "confusion_test.json", "confusion_val.json", "figures/confusion_test_000002.png",
        "figures/confusion_val_000002.png",
    ]  # fmt: skip
    assert sum(map(sum, logged["confusion_test.json"]["counts"])) == len(programs.test_data)
    right = sum(logged["confusion_test.json"]["counts"][place][place] for place in range(5))
    assert float(trainer.callback_metrics["test/accuracy"]) == pytest.approx(right / len(programs.test_data))
    (predicted, *_), *_ = trainer.predict(module, datamodule=programs)
    assert predicted["predicted"] == max(predicted["probabilities"], key=predicted["probabilities"].get)
    assert json.dumps(predicted) and sum(predicted["probabilities"].values()) == pytest.approx(1)


def steps(**values):
    return [{"accuracy": 0.2, "cut": 0.0, "predicted_classes": 3.0} | values] * (2 * WINDOW)


def test_findings_and_their_thresholds(tmp_path):
    module = made()
    assert one_class(module, steps()) is None and cut_texts(module, steps(cut=CUT)) is None
    assert "taken for one class (accuracy 0.2)" in one_class(module, steps(predicted_classes=1.0))
    assert "20% of the texts" in cut_texts(module, steps(cut=0.2))
    doctor = Doctor()
    fit(made(max_length=16), WINDOW, [doctor], data=data(), seed=0)
    assert "reach model.max_length (16 tokens)" in doctor.said["cut_texts"]


def test_mistakes_are_named(reasoner):
    with pytest.raises(ConfigError, match="knows nothing of the others"):
        TextEncoder(PolicyParams(reasoner), "first")
    with pytest.raises(ConfigError, match="the data name no classes"):
        made().configure_model()
    with pytest.raises(ConfigError, match=r"model\.head_width is 0"):
        made(head_width=0)
    module = made(labels=["alder", "birch"])
    module.configure_model()
    with pytest.raises(ConfigError, match="the class 'oak', which is not one of"):
        module.targets([{"label": "oak"}])
    with pytest.raises(ConfigError, match="needs a text as 'text' in every row"):
        module.logits([{"id": "3", "label": "alder"}])
    with pytest.raises(ConfigError, match="special tokens take 2"):
        module.policy.encode(["x"], 2)
