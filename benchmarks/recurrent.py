"""Rodimus and Rodimus+ on associative recall, the memory of decoding, and GRPO beside a transformer.

    python benchmarks/recurrent.py                    # what has no result yet, then the tables
    python benchmarks/recurrent.py --parts '[memory]'
    python benchmarks/recurrent.py --run false        # the tables only

Results are runs/recurrent/<part>_<arm>_<seed>.json, so that an interrupted benchmark continues where it stopped. A run
of recall takes about a CPU minute, one of sums about three.
"""

import json
import random
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from assets.make_untrained import main as make_untrained  # noqa: E402
from benchmarks.common import markdown_table, run_script, use_threads  # noqa: E402
from policies.recurrent import RodimusConfig  # noqa: E402
from rollouts.decoder import Decoder  # noqa: E402
from rollouts.recurrent_decoder import RecurrentDecoder  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

RESULTS = Path("runs/recurrent")

# ---- associative recall: "key value ... key? value", of which only the newest value of a key counts -----------------

KEYS, VALUES, NOISE = 8, 8, 4
LENGTH, WINDOW = 64, 16
STEPS, BATCH, LR = 1000, 32, 5e-3
RODIMUS: dict[str, Any] = {
    "vocab_size": 2 * KEYS + VALUES + NOISE, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
    "num_attention_heads": 4, "window_size": WINDOW,
}  # fmt: skip
#: all recurrent states have 2 x 8 x 64 numbers
RECALL: dict[str, dict[str, Any]] = {
    "rodimus": {},
    "untempered": {"gates": "untempered"},
    "linear attention": {"gates": "none"},
    "rodimus plus": {"block_type": "rodimus_plus"},
}


def recall_rows(rows: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """(tokens, distances), each (rows, LENGTH): pairs, noise and questions, drawn at random.

    The distance is 0 but at the question of an answer, where it is the number of tokens since its key was written last.
    """
    tokens, distances = torch.zeros(rows, LENGTH, dtype=torch.long), torch.zeros(rows, LENGTH, dtype=torch.long)
    for row in range(rows):
        values: dict[int, tuple[int, int]] = {}  # key -> (value, place)
        place = 0
        while place < LENGTH - 1:
            kind = rng.random()
            if kind < 0.2:
                tokens[row, place] = 2 * KEYS + VALUES + rng.randrange(NOISE)
                place += 1
                continue
            if kind < 0.6 or not values:
                key, value = rng.randrange(KEYS), rng.randrange(VALUES)
                values[key] = value, place
                first = key
            else:
                key = rng.choice(list(values))
                value, written = values[key]
                distances[row, place] = place - written
                first = KEYS + key
            tokens[row, place], tokens[row, place + 1] = first, 2 * KEYS + value
            place += 2
        if place < LENGTH:
            tokens[row, place] = 2 * KEYS + VALUES
    return tokens, distances


def recall(arm: str, seed: int) -> dict[str, Any]:
    """Train on fresh rows, and measure the share of right answers on others, by distance."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(RodimusConfig(**RODIMUS, **RECALL[arm]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS, pct_start=0.1)
    rng, losses, started = random.Random(f"train {seed}"), [], time.process_time()
    for _ in range(STEPS):
        tokens, distances = recall_rows(BATCH, rng)
        asked = distances[:, :-1] > 0
        loss = F.cross_entropy(model(input_ids=tokens[:, :-1]).logits[asked], tokens[:, 1:][asked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    tokens, distances = recall_rows(512, random.Random("test"))
    with torch.no_grad():
        right = (model.eval()(input_ids=tokens[:, :-1]).logits.argmax(-1) == tokens[:, 1:]).float()
    distances = distances[:, :-1]
    near, far = (distances > 0) & (distances < WINDOW - 1), distances >= 2 * WINDOW
    return {
        "all": float(right[distances > 0].mean()),
        "near": float(right[near].mean()),
        "far": float(right[far].mean()),
        "losses": losses[::25],
        "weights": sum(weight.numel() for weight in model.parameters()),
        "cpu_seconds": time.process_time() - started,
    }


# ---- the memory of decoding -----------------------------------------------------------------------------------------

LENGTHS = (256, 1024, 4096, 16384)


@torch.no_grad()
def memory(arm: str, seed: int) -> dict[str, Any]:
    """Bytes of the engine's cache, and milliseconds per step, of 4 rows after so many tokens of each."""
    torch.manual_seed(seed)
    rows, piece, decoder = 4, 256, _decoder(arm)
    cache: Any = decoder.cache()
    index, started = torch.arange(rows), time.process_time()
    tokens, result = torch.ones(rows, piece, dtype=torch.long), {}
    for first in range(0, max(LENGTHS), piece):
        length, place = first + piece, torch.full((rows,), first)
        cache.reserve(rows, length)
        decoder.extend(tokens, torch.full((rows,), piece), place, place, index, cache)
        if length in LENGTHS:
            size, last, begin = cache.nbytes, place + piece - 1, time.process_time()
            for _ in range(20):  # the last token again: for the time only
                decoder.step(tokens[:, 0], last, last, length - 1, cache)
            result[str(length)] = {"bytes": size, "ms": 50 * (time.process_time() - begin)}
    return result | {"cpu_seconds": time.process_time() - started}


def _decoder(arm: str) -> Any:
    if arm == "transformer":
        shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2}
        config: Any = LlamaConfig(**shape, num_attention_heads=4, max_position_embeddings=max(LENGTHS))
        return Decoder(AutoModelForCausalLM.from_config(config).eval(), torch.float32, transpose=True)
    config = RodimusConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, state_size=32, num_attention_heads=4, window_size=64,
        block_type=arm.replace(" ", "_"),  # type: ignore[arg-type]
    )  # fmt: skip
    return RecurrentDecoder(AutoModelForCausalLM.from_config(config).eval(), torch.float32)


# ---- sums: SFT from random weights, then GRPO -----------------------------------------------------------------------

SFT_STEPS, ROLLOUTS = 600, 40
#: hidden size and layers, for about 150,000 weights each
SUMS = {"rodimus": ("tiny_rodimus", 64, 3), "transformer": ("tiny_reasoner", 64, 3)}


def sums(arm: str, seed: int) -> dict[str, Any]:
    """pass@1 on held-out sums before and during GRPO, after the same supervised steps on the same demonstrations."""
    from benchmarks.experiments import fit  # with Lightning and MLflow, which the other parts do not need

    name, hidden, layers = SUMS[arm]
    base, trained = str(RESULTS / f"base_{arm}_{seed}"), str(RESULTS / f"sft_{arm}_{seed}")
    make_untrained(name, base, hidden, layers, seed)
    common = [f"--seed_everything={seed}", "--trainer.enable_progress_bar=false"]
    begin = time.process_time()
    sft = [
        "--config=configs/sft.yaml", f"--model.policy.model={base}", f"--trainer.max_steps={SFT_STEPS}",
        "--data.batch_size=32", f"--data.train_size={32 * SFT_STEPS}", f"--trainer.val_check_interval={SFT_STEPS}",
        "--model.optimizer.lr=3e-3", "--model.lr_scheduler=torch.optim.lr_scheduler.OneCycleLR",
        "--model.lr_scheduler.max_lr=3e-3", f"--model.lr_scheduler.total_steps={SFT_STEPS}",
    ]  # fmt: skip
    cli, _ = fit(RESULTS, f"sft {arm} {seed}", [*sft, *common])
    cli.model.policy.save(trained)
    grpo = [
        "--config=configs/grpo.yaml", f"--model.policy.model={trained}", f"--trainer.max_steps={ROLLOUTS}",
        f"--trainer.val_check_interval={ROLLOUTS // 4}",
    ]  # fmt: skip
    _, result = fit(RESULTS, f"grpo {arm} {seed}", [*grpo, *common])
    return {
        "pass@1": result["curves"]["val/pass1"],
        "reward": result["curves"]["train/reward"],
        "cpu_seconds": time.process_time() - begin,
    }


# ---- running and reporting ------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Any, list[str]]] = {
    "recall": (recall, list(RECALL)),
    "memory": (memory, ["rodimus", "rodimus plus", "transformer"]),
    "sums": (sums, list(SUMS)),
}


def _path(part: str, arm: str, seed: int) -> Path:
    return RESULTS / f"{part}_{arm.replace(' ', '_')}_{seed}.json"


def main(seeds: int = 3, run: bool = True, parts: tuple[str, ...] = tuple(PARTS)) -> None:
    """Run what has no result yet and print the tables.

    Args:
        seeds: number of seeds; the memory has one. run: whether to run, or only to print. parts: which of them.
    """
    use_threads()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds if run else 0):
        for part in parts:
            measure, arms = PARTS[part]
            for arm in arms if part != "memory" or seed == 0 else ():
                if not (path := _path(part, arm, seed)).is_file():
                    atomic_write_text(path, json.dumps(measure(arm, seed)))
                    print(path, flush=True)
    for part in parts:
        print(f"\n{part}\n\n{table(part, seeds)}")


def table(part: str, seeds: int) -> str:
    """The table of one part."""
    results = {
        arm: [json.loads(path.read_text()) for seed in range(seeds) if (path := _path(part, arm, seed)).is_file()]
        for arm in PARTS[part][1]
    }
    results = {arm: runs for arm, runs in results.items() if runs}
    if part == "recall":
        columns = ["all", "near", "far"]
        rows = [[arm, str(runs[0]["weights"]), *(_shown([run[c] for run in runs]) for c in columns), str(len(runs))]
                for arm, runs in results.items()]  # fmt: skip
        return markdown_table(["arm", "weights", "all", "key in the window", "key beyond it", "seeds"], rows)
    if part == "memory":
        rows = [
            [arm, *(f"{runs[0][str(n)]['bytes']:,} bytes, {runs[0][str(n)]['ms']:.1f} ms" for n in LENGTHS)]
            for arm, runs in results.items()
        ]
        return markdown_table(["arm", *(f"{n:,} tokens" for n in LENGTHS)], rows)
    rows = []
    for arm, runs in results.items():
        ends = [[run["pass@1"][index][1] for run in runs] for index in (0, -1)]
        rewards = [[mean(value for _, value in run["reward"][5 * end :][:5]) for run in runs] for end in (0, -1)]
        rows.append([arm, *map(_shown, [*ends, *rewards]), str(len(runs))])
    heads = ["pass@1 before", "pass@1 after", "reward, first 5 rollouts", "reward, last 5", "seeds"]
    return markdown_table(["arm", *heads], rows)


def _shown(values: list[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    run_script(main)
