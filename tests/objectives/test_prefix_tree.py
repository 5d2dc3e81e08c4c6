"""T-SPMO's tree against prefixes looked up in a dictionary."""

import random
from collections import defaultdict

import pytest
import torch

from objectives import PrefixTree, Probability


def padded(rows, pad=0):
    width = max(map(len, rows))
    tokens = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows])
    return tokens, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


def edges(found, tokens, groups):
    """{(group, prefix, token): advantage} of all places that carry one."""
    kept = {}
    for row, place in torch.nonzero(found).tolist():
        key = (int(groups[row]), tuple(tokens[row, :place].tolist()), int(tokens[row, place]))
        assert key not in kept, "an edge counts once"
        kept[key] = float(found[row, place])
    return kept


def by_hand(rows, rewards, groups):
    at = defaultdict(list)
    for row, reward, group in zip(rows, rewards, groups, strict=True):
        for end in range(len(row) + 1):
            at[group, tuple(row[:end])].append(reward)
    gains = {
        (group, path[:-1], path[-1]): sum(own) / len(own) - sum(at[group, path[:-1]]) / len(at[group, path[:-1]])
        for (group, path), own in at.items()
        if path
    }
    return {edge: gain for edge, gain in gains.items() if abs(gain) > 1e-12}


def test_the_example_of_the_specification():
    a, b, c, x = 1, 2, 3, 4
    tokens, mask = padded([[a, b], [a, c], [x, b]])
    tree = PrefixTree()
    found = tree(torch.tensor([1.0, 1.0, 0.0]), torch.zeros(3, dtype=torch.long), tokens, mask)
    assert torch.allclose(found, torch.tensor([[1 / 3, 0.0], [0.0, 0.0], [-2 / 3, 0.0]]))
    assert tree.metrics == {"edges": 2.0, "edge_depth": 0.0}
    found = tree(torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3, dtype=torch.long), tokens, mask)
    assert torch.allclose(found, torch.tensor([[0.5 - 1 / 3, 0.5], [0.0, -0.5], [-1 / 3, 0.0]]))
    assert tree.metrics["edge_depth"] == 0.5


@pytest.mark.parametrize("seed", range(8))
def test_any_tree(seed):
    rng = random.Random(seed)
    rows = [[rng.randint(1, 2 + (place > 3)) for place in range(rng.randint(1, 7))] + [9] for _ in range(24)]
    rewards = [rng.choice([0.0, 0.5, 1.0]) for _ in rows]
    groups = [i // 8 for i in range(24)]
    tokens, mask = padded(rows)
    found = PrefixTree()(torch.tensor(rewards), torch.tensor(groups), tokens, mask)
    kept, expected = edges(found, tokens, groups), by_hand(rows, rewards, groups)
    assert kept.keys() == expected.keys() and len(kept) > 10
    assert all(kept[edge] == pytest.approx(gain, abs=1e-6) for edge, gain in expected.items())


def test_equal_rewards_have_no_edges_and_rows_without_a_reward_no_part():
    tokens, mask = padded([[1, 2], [1, 3], [4, 2]])
    groups = torch.zeros(3, dtype=torch.long)
    assert not PrefixTree()(torch.full((3,), 1 / 3), groups, tokens, mask).any()
    found = PrefixTree()(torch.tensor([1.0, float("nan"), 0.0]), groups, tokens, mask)
    assert torch.equal(found, torch.tensor([[0.5, 0.0], [0.0, 0.0], [-0.5, 0.0]]))
    assert not PrefixTree()(torch.full((3,), float("nan")), groups, tokens, mask).any()


def test_given_tokens_are_prefix_and_no_edge():
    tokens, mask = padded([[7, 8, 1], [7, 8, 2], [7, 9, 1], [7, 9, 1]])
    mask[:, :2] = False
    found = PrefixTree()(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.zeros(4, dtype=torch.long), tokens, mask)
    assert found.tolist() == [[0, 0, 0.5], [0, 0, -0.5], [0, 0, 0], [0, 0, 0]]


def test_the_loss_is_the_plain_probability():
    logprobs = torch.tensor([[0.25, 0.5, 0.125]]).log().requires_grad_()
    loss, _ = Probability()(logprobs, None, torch.tensor([[2.0, -1.0, 5.0]]), torch.tensor([[True, True, False]]))
    assert loss[0, :2].tolist() == pytest.approx([-0.5, 0.5])
    loss[0, :2].sum().backward()
    assert logprobs.grad[0].tolist() == pytest.approx([-0.5, 0.5, 0.0])
