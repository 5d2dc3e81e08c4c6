"""Compare vLLM with the embedded engine: equal greedy completions, and the gap between its log-probs and the policy's.

    python benchmarks/check_vllm.py --model assets/tiny_reasoner        # in this process; needs the extra `vllm`
    python benchmarks/check_vllm.py --model MODEL --url http://127.0.0.1:8000       # a server; see VLLMServer

Both are measured before and after updates. The last line is OK only if every update of the weights arrived: in float32
the gap then stays at rounding error.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from policies import Policy, PolicyParams  # noqa: E402
from rollouts import EmbeddedEngine, SamplingParams, VLLMEngine, VLLMServer  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402


@torch.no_grad()
def gap(policy: Policy, engine: VLLMEngine | VLLMServer, texts: list[str], new_tokens: int) -> tuple[float, float]:
    """(fraction of equal greedy tokens, mean absolute difference of the log-probs of sampled tokens)"""
    prompts: list[list[int]] = [policy.encode(text) for text in texts]
    rows: list[dict[str, object]] = [{} for _ in texts]
    greedy = SamplingParams(new_tokens, temperature=0.0)
    ours, theirs = (side.generate(policy, prompts, rows, 1, greedy) for side in (EmbeddedEngine(), engine))
    width = min(ours.completion_ids.shape[1], theirs.completion_ids.shape[1])
    same = (ours.completion_ids[:, :width] == theirs.completion_ids[:, :width])[ours.completion_mask[:, :width]]
    with isolated_rng("check"):
        batch = engine.generate(policy, prompts, rows, 4, SamplingParams(new_tokens))
    logprobs, _ = policy.logprobs(batch.prompt_groups(torch.arange(len(batch.finish_reasons))))
    return float(same.float().mean()), float((logprobs - batch.behaviour_logprobs)[batch.action_mask].abs().mean())


def main(
    model: str = "assets/tiny_reasoner", url: str | None = None, new_tokens: int = 24, tolerance: float = 1e-4
) -> None:
    """Compare in three rounds, with changed weights in between.

    Args:
        model: as policy.model.
        url: address of a vLLM server; vLLM runs in this process if None.
        new_tokens: maximum tokens per completion.
        tolerance: largest mean gap of the log-probs, in nats, that counts as equal.
    """
    torch.manual_seed(0)
    policy = Policy(PolicyParams(model))
    engine = VLLMServer(url) if url else VLLMEngine(options={"enforce_eager": True})
    sums = ["12+34=?", "5-3=?", "77+8=?", "6+6=?"]
    texts = sums if "reasoner" in model else ["Name a colour.", "What is 2+3?", "Say hello.", "Where is Rome?"]
    within_tolerance = True
    print(f"{'':16}{'equal greedy tokens':>22}{'mean log-prob gap':>22}")
    for round_number in range(3):
        equal_tokens, logprob_gap = gap(policy, engine, texts, new_tokens)
        within_tolerance &= logprob_gap < tolerance
        print(f"{f'after {round_number} updates':16}{equal_tokens:22.3f}{logprob_gap:22.2g}", flush=True)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
    print("OK" if within_tolerance else "NOT OK")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
