"""Losses of embedders beside torch's and brute force, and scores of retrieval beside loops."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from objectives import MultipleNegatives, TripletMargin
from objectives.embedding_losses import cosine_distance, euclidean_distance
from objectives.retrieval import alignment_and_uniformity, recall, same_concept, triplet_scores
from support.errors import ConfigError


def triple(seed=0, rows=6):
    generator = torch.Generator().manual_seed(seed)
    return tuple(normalize(torch.randn(rows, 5, generator=generator), dim=1).requires_grad_() for _ in range(3))


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.5])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_triplet_loss_is_that_of_torch(distance, margin):
    distances = {
        "cosine": lambda x, y: 1 - torch.nn.functional.cosine_similarity(x, y),
        "euclidean": torch.nn.PairwiseDistance(eps=0),
    }
    vectors = triple()
    theirs = torch.nn.TripletMarginWithDistanceLoss(distance_function=distances[distance], margin=margin)(*vectors)
    ours, active = TripletMargin(distance, margin)(*vectors)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)
    gaps = distances[distance](vectors[0], vectors[1]) - distances[distance](vectors[0], vectors[2]) + margin
    assert float(active) == pytest.approx(sum(float(gap) > 0 for gap in gaps) / 6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_step_brings_positives_nearer_and_negatives_farther(distance):
    """A distance with the wrong sign would do the opposite."""
    anchors, positives, negatives = (vectors.detach() for vectors in triple())
    measure = {"cosine": cosine_distance, "euclidean": euclidean_distance}[distance]
    weights = anchors.clone().requires_grad_()
    loss, _ = TripletMargin(distance, 1.9)(normalize(weights, dim=1), positives, negatives)
    loss.backward()
    moved = normalize(weights.detach() - 0.1 * weights.grad, dim=1)
    gap = measure(anchors, positives) - measure(anchors, negatives)
    assert (measure(moved, positives) - measure(moved, negatives)).mean() < gap.mean()


def test_equal_vectors_have_a_finite_gradient():
    vectors = torch.ones(1, 4).requires_grad_()
    euclidean_distance(vectors, torch.ones(1, 4)).sum().backward()
    assert vectors.grad.isfinite().all()


def test_multiple_negatives_is_a_softmax_by_brute_force():
    anchors, positives, negatives = triple(1)
    candidates = [*positives, *negatives]
    losses = []
    for place, anchor in enumerate(anchors):
        weights = [math.exp(20 * float(anchor @ candidate)) for candidate in candidates]
        losses.append(-math.log(weights[place] / sum(weights)))
    loss, active = MultipleNegatives()(anchors, positives, negatives)
    assert float(loss) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert 0 < float(active) <= 1


@pytest.mark.parametrize("margin", [0.0, 2.0, 5.0, -1.0])
def test_a_margin_that_never_ends_is_refused(margin):
    with pytest.raises(ConfigError, match="above 0 and below 2"):
        TripletMargin("euclidean", margin)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="distance 'manhattan'"):
        TripletMargin("manhattan")
    with pytest.raises(ConfigError, match="scale is 0"):
        MultipleNegatives(0)


def test_scores_are_those_of_loops():
    anchors, positives, negatives = (vectors.detach() for vectors in triple(2, 8))
    concepts = list("aabbccdd")
    gaps = [float(a @ p - a @ n) for a, p, n in zip(anchors, positives, negatives, strict=True)]
    scores = triplet_scores(anchors, positives, negatives)
    for margin in (0, 0.1, 0.3):
        assert scores[f"accuracy@{margin:g}"] == pytest.approx(sum(gap > margin for gap in gaps) / 8)
    assert scores["gap"] == pytest.approx(sum(gaps) / 8, abs=1e-6)
    hits = {1: 0, 5: 0}
    for place, anchor in enumerate(anchors):
        order = sorted(range(8), key=lambda other: -float(anchor @ positives[other]))
        for k in hits:
            hits[k] += any(concepts[other] == concepts[place] for other in order[:k])
    recalls = recall(anchors, positives, same_concept(concepts, concepts))
    assert recalls == {f"recall@{k}": pytest.approx(number / 8) for k, number in hits.items()}
    texts = [*anchors, *positives]
    pairs = [(x, y) for number, x in enumerate(texts) for y in texts[:number]]
    expected = math.log(sum(math.exp(-2 * float((x - y).square().sum())) for x, y in pairs) / len(pairs))
    measured = alignment_and_uniformity(anchors, positives)
    assert measured["uniformity"] == pytest.approx(expected, abs=1e-5)
