"""An exported embedder loads in sentence-transformers with the same vectors. Needs the extra `bench`."""

import pytest
import torch

from policies import Embedder, PolicyParams
from tests.helpers import ROOT

sentence_transformers = pytest.importorskip("sentence_transformers")


@pytest.mark.parametrize(
    ("model", "pooling"),
    [("reasoner", "last"), ("reasoner", "mean"), (str(ROOT / "assets/tiny_encoder"), "first")],
)
def test_an_export_gives_the_same_vectors(model, pooling, reasoner, tmp_path):
    words = [] if pooling == "first" else ["harq"]
    params = PolicyParams(reasoner if model == "reasoner" else model)
    embedder = Embedder(params, pooling, instruction="query: ", domain_words=words).eval()
    embedder.save(tmp_path, 32)
    plain = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    texts = ["restart the harq loop", "x", "a text that is cut because it is longer than its maximum"]
    with torch.no_grad():
        for queries, prompt in ((False, "document"), (True, "query")):
            vectors = torch.tensor(plain.encode(texts, prompt_name=prompt))
            assert torch.allclose(vectors, embedder.embed(texts, 32, queries), atol=1e-5)
