"""The doctor's finding about log-probs that differ between rollout and update."""

import pytest

from rewards import FunctionReward
from rollouts import BatchPlan, EmbeddedEngine, SamplingParams
from tests.callbacks.test_doctor import examine
from tests.helpers import digits


class Deaf(EmbeddedEngine):
    """Records log-probs that are not the policy's."""

    def generate(self, policy, *arguments, **options):
        batch = super().generate(policy, *arguments, **options)
        batch.behaviour_logprobs = (batch.behaviour_logprobs - self.shift) * batch.action_mask
        return batch


@pytest.mark.parametrize(
    ("shift", "parts"), [(0.02, {}), (0.02, {"sampling": SamplingParams(8, top_k=5)}), (0.005, {})]
)
def test_log_probs_of_rollout_and_update_that_differ_are_reported(reasoner, tmp_path, shift, parts):
    engine = Deaf()
    engine.shift = shift
    said = examine(tmp_path, reasoner, [FunctionReward(digits)], rollouts=1, engine=engine, **parts).said
    assert ("behaviour_gap" in said) == (shift > 0.01 and not parts)
    if said:
        assert "that Deaf recorded differ by 0.02 nats per token" in said["behaviour_gap"]


def test_the_gap_is_measured_before_the_policy_changes(reasoner, tmp_path):
    """Later updates of a rollout learn from a policy that has moved on."""
    batch = BatchPlan(prompts_per_rollout=2, group_size=4, updates_per_rollout=2, epochs=2)
    doctor = examine(tmp_path, reasoner, [FunctionReward(digits)], rollouts=2, lr=0.05, batch=batch)
    assert "behaviour_gap" not in doctor.said and all(one.gap < 1e-5 for one in doctor.seen)
