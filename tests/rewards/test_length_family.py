"""The relatives of LASER, by hand."""

import pytest

from rewards import KimiLength, L1Exact, L1Max, NormalisedLength, Truncation
from support.errors import ConfigError
from tests.rewards.helpers import batch_of


def test_kimi_places_a_group_between_a_half_and_minus_a_half():
    batch = batch_of([4, 6, 8, 4, 5, 5, 5, 5], [1, 1, 0, 0, 1, 0, 1, 1], prompts=2)
    assert KimiLength()(batch).tolist() == [0.5, 0, -0.5, 0, 0, 0, 0, 0]


def test_normalised_lengths_are_those_of_the_right_ones():
    found = NormalisedLength()(batch_of([2, 4, 6, 50, 3, 9, 9, 9], [1, 1, 1, 0, 1, 0, 0, 0], prompts=2)).tolist()
    # mean 4 and sample deviation 2: z = -1, 0, 1
    assert found == pytest.approx([-0.2689414, -0.5, -0.7310586, 0, -0.5, 0, 0, 0], abs=1e-5)


def test_targets_for_all_and_from_a_column():
    batch = batch_of([10, 20, 40], [1, 1, 0])
    assert Truncation(15, beyond=-1.0)(batch).tolist() == [1, -1, -1]
    assert L1Exact(20)(batch).tolist() == [-10, 0, -20]
    assert L1Max(20, alpha=0.05)(batch).tolist() == pytest.approx([1.0, 0.5, 0])
    assert L1Max(20, alpha=0.01)(batch_of([90, 30], [1, 1])).tolist() == pytest.approx([0, 0.4])
    batch.rows = [{"id": "a", "length": 30}]
    assert L1Exact("length")(batch).tolist() == [-20, -10, -10]
    with pytest.raises(ConfigError, match="L1Max: target is 0"):
        L1Max(0)
