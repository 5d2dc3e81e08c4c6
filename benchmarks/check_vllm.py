"""vLLM against the embedded engine: the same greedy completions, and how far its log-probs are from the policy's, before and after an update.

    python benchmarks/check_vllm.py --model assets/tiny_reasoner                    # in this process; needs the extra `vllm`
    python benchmarks/check_vllm.py --model MODEL --url http://127.0.0.1:8000       # a server, started as VLLMServer's documentation says

The last line is OK only if every update of the weights arrived: in float32 the gap then stays at rounding error.
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
    """(share of equal greedy tokens, mean difference of the log-probs of sampled tokens)"""
    prompts, rows = [policy.encode(text) for text in texts], [{} for _ in texts]
    greedy = SamplingParams(new_tokens, temperature=0.0)
    ours, theirs = (made.generate(policy, prompts, rows, 1, greedy) for made in (EmbeddedEngine(), engine))
    width = min(ours.completion_ids.shape[1], theirs.completion_ids.shape[1])
    same = (ours.completion_ids[:, :width] == theirs.completion_ids[:, :width])[ours.completion_mask[:, :width]]
    with isolated_rng("check"):
        batch = engine.generate(policy, prompts, rows, 4, SamplingParams(new_tokens))
    own, _ = policy.logprobs(batch.prompt_groups(torch.arange(len(batch.finish_reasons))))
    return float(same.float().mean()), float((own - batch.behaviour_logprobs)[batch.action_mask].abs().mean())


def main(
    model: str = "assets/tiny_reasoner", url: str | None = None, new_tokens: int = 24, tolerance: float = 1e-4
) -> None:
    """Three rounds, with changed weights in between."""
    torch.manual_seed(0)
    policy = Policy(PolicyParams(model))
    engine = VLLMServer(url) if url else VLLMEngine(options={"enforce_eager": True})
    texts = (
        ["12+34=?", "5-3=?", "77+8=?", "6+6=?"]
        if "reasoner" in model
        else ["Name a colour.", "What is 2+3?", "Say hello.", "Where is Rome?"]
    )
    fine = True
    print(f"{'':16}{'equal greedy tokens':>22}{'mean log-prob gap':>22}")
    for round_number in range(3):
        same, far = gap(policy, engine, texts, new_tokens)
        fine &= far < tolerance
        print(f"{f'after {round_number} updates':16}{same:22.3f}{far:22.2g}", flush=True)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
    print("OK" if fine else "NOT OK")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
