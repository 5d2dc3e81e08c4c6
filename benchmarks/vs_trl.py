"""Compare a GRPO step of this project with TRL's: same model, prompts, group size, token budget, precision, optimiser.

Each side is a separate process that trains through its library's ordinary trainer (Lightning's here, transformers'
there) and waits for its turn before every step: A B A B. The table shows seconds, tokens per second and peak memory,
and the ratio of TRL's cost to ours, with the minimum and maximum over the pairs of steps. Rewards are fractions of
vowels, which cost nothing and differ within a group.

    python benchmarks/vs_trl.py                    # SmolLM2-135M, 4 prompts x 8 completions x at most 64 tokens
    python benchmarks/vs_trl.py --prompt_tokens 400 --group_size 16
    python benchmarks/vs_trl.py --model assets/tiny_reasoner --prompts 16
    python benchmarks/vs_trl.py --device cuda --precision bf16 --prompts 16 --max_new_tokens 1024

On CPU, set OMP_NUM_THREADS. Needs the extra `bench`; `--only ours` runs one side alone.
"""

import multiprocessing
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent.parent))
Step = dict[str, float]


@dataclass
class Work:
    """Work of both sides.

    Args:
        model: as policy.model.
        prompts, group_size, max_new_tokens: prompts per step, completions per prompt, maximum tokens per completion.
        prompt_tokens: approximate length of a prompt in tokens.
        precision: fp32 throughout, or fp32 weights under bf16 autocast.
        lora: rank of the adapters; 0 trains all weights.
        steps: number of timed steps per side, after one that is not timed.
        device: cpu or cuda.
        token_budget: our update_token_budget.
        trl_batch: completions per pass of TRL; all if None.
        trl_checkpointing: whether TRL recomputes activations, which is its default.
        learning_rate: learning rate of both sides.
    """

    model: str = "smollm2-135m-instruct"
    prompts: int = 4
    group_size: int = 8
    prompt_tokens: int = 50
    max_new_tokens: int = 64
    precision: Literal["fp32", "bf16"] = "fp32"
    lora: int = 0
    steps: int = 3
    device: Literal["cpu", "cuda"] = "cpu"
    token_budget: int | None = 400
    trl_batch: int | None = None
    trl_checkpointing: bool = True
    learning_rate: float = 1e-6


TOPICS = (
    "the sea|a mountain village|the history of bread|winter birds|a broken clock|the first railway|a garden at night|"
    "old maps"
).split("|")


def texts(work: Work) -> list[str]:
    """Prompts of about the required length, different from step to step."""
    if "reasoner" in work.model:
        from datamodules import ArithmeticPrompts

        return [row["prompt"] for row in ArithmeticPrompts(train_size=64, seed=0).train_rows()]
    filler = "Take into account that the reader is a curious child who likes animals, numbers and short sentences. "
    return [
        filler * max(0, (work.prompt_tokens - 50) // 19)
        + f"Tell me in a few words something true about {TOPICS[i % 8]}, and why it matters to you. Part {i}."
        for i in range(64)
    ]


def letters(completions: Any, **columns: Any) -> list[float]:
    """A reward: the fraction of vowels."""
    plain = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in plain]


class Turns:
    """A worker's end of the pipe: it waits for its turn and reports the cost of the step."""

    def __init__(self, pipe: Any, work: Work) -> None:
        self.pipe, self.work, self.seconds = pipe, work, dict.fromkeys(("rollout", "update", "step"), 0.0)

    def begin(self) -> None:
        self.pipe.recv()
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.started = self.clock()

    def clock(self) -> float:
        if self.work.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, name: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            before = self.clock()
            result = function(*args, **kwargs)
            self.seconds[name] += self.clock() - before
            return result

        return run

    def end(self, tokens: float) -> None:
        self.seconds["step"] = self.clock() - self.started
        self.seconds["update"] = self.seconds["update"] or self.seconds["step"] - self.seconds["rollout"]
        self.pipe.send(self.seconds | {"tokens": tokens, "memory": self.memory()})

    def memory(self) -> float:
        """Peak memory of the process, in GB."""
        if self.work.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / 1e9
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def ours(work: Work, turns: Turns) -> None:
    """Train by this project."""
    import lightning as L
    import torch

    from lightning_modules import GRPO, KLPenalty
    from policies import LoRA, PolicyParams
    from rewards import FunctionReward
    from rollouts import BatchPlan, SamplingParams

    class Turn(L.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            turns.begin()

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            turns.end(float(module.last_rollout.lengths.sum()))

    module = GRPO(
        policy=PolicyParams(work.model, lora=LoRA(r=work.lora, alpha=2 * work.lora) if work.lora else None),
        batch=BatchPlan(work.prompts, work.group_size, update_token_budget=work.token_budget),
        sampling=SamplingParams(work.max_new_tokens),
        rewards=[FunctionReward(letters)],
        kl=KLPenalty(0.0),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=work.learning_rate, weight_decay=0.0, fused=True),
    )
    module.rollout, module.update = turns.timed("rollout", module.rollout), turns.timed("update", module.update)
    rows = [{"prompt": text} for text in texts(work)]
    count = work.prompts * (work.steps + 1)
    data = torch.utils.data.DataLoader(
        [rows[i % len(rows)] for i in range(count)], batch_size=work.prompts, collate_fn=list
    )
    trainer = L.Trainer(
        accelerator=work.device,
        devices=1,
        max_epochs=1,
        precision="bf16-mixed" if work.precision == "bf16" else "32-true",
        callbacks=[Turn()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)


def trl(work: Work, turns: Turns) -> None:
    """Train by TRL."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from policies.locate import locate

    folder = str(locate(work.model))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts(work)]
    completions = work.prompts * work.group_size
    per_pass = work.trl_batch or completions
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=per_pass,
        gradient_accumulation_steps=completions // per_pass,
        num_generations=work.group_size,
        max_completion_length=work.max_new_tokens,
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        max_steps=work.steps + 1,
        bf16=work.precision == "bf16",
        use_cpu=work.device == "cpu",
        gradient_checkpointing=work.trl_checkpointing,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer: Any = None

    class Turn(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.end(completion_tokens[-1])

    completion_tokens: list[float] = [0.0]

    def generate(*args: Any, **kwargs: Any) -> Any:
        generated = original(*args, **kwargs)
        completion_tokens.append(float(sum(map(len, generated[1]))))
        return generated

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        processing_class=tokenizer,
        reward_funcs=letters,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=LoraConfig(r=work.lora, lora_alpha=2 * work.lora, target_modules="all-linear")
        if work.lora
        else None,
        callbacks=[Turn()],
    )
    original = trainer._generate
    trainer._generate = turns.timed("rollout", generate)
    trainer.train()


def worker(side: str, work: Work, pipe: Any) -> None:
    """The process of one side."""
    import torch

    from benchmarks.common import use_threads

    use_threads()
    torch.manual_seed(0)
    {"ours": ours, "trl": trl}[side](work, Turns(pipe, work))


def measure(work: Work, sides: list[str]) -> dict[str, list[Step]]:
    """The timed steps of each side, made in turn."""
    context = multiprocessing.get_context("spawn")
    pipes, steps = {}, {side: [] for side in sides}
    for side in sides:
        pipes[side], worker_pipe = context.Pipe()
        context.Process(target=worker, args=(side, work, worker_pipe), daemon=True).start()
        worker_pipe.close()
    for step in range(work.steps + 1):
        for side in sides:
            pipes[side].send("go")
            try:
                result = pipes[side].recv()
            except (EOFError, ConnectionResetError):
                raise SystemExit(f"the side {side!r} ended early; its error is printed above.") from None
            print(
                f"{side:5} step {step}: " + "  ".join(f"{name} {value:.2f}" for name, value in result.items()),
                flush=True,
            )
            if step:
                steps[side].append(result)
    return steps


def table(steps: dict[str, list[Step]]) -> str:
    """Means of both sides, and their ratio with its minimum and maximum."""
    sides = list(steps)
    ratio = f"{'ratio':>10}  (min - max)" if len(sides) == 2 else ""
    lines = [f"{'':24}" + "".join(f"{side:>12}" for side in sides) + ratio]

    def line(name: str, quantity: Any, unit: str, more_is_better: bool = False) -> None:
        values = {side: [quantity(step) for step in steps[side]] for side in sides}
        text = f"{name:24}" + "".join(f"{mean(values[side]):10.3g} {unit:1}" for side in sides)
        if len(sides) == 2:
            ours_and_theirs = zip(values[sides[0]], values[sides[1]], strict=True)
            pairs = [a / b if more_is_better else b / a for a, b in ours_and_theirs]
            overall = mean(values[sides[1]]) / mean(values[sides[0]])
            text += f"{1 / overall if more_is_better else overall:10.2f}  ({min(pairs):.2f} - {max(pairs):.2f})"
        lines.append(text)

    for name in ("rollout", "update", "step"):
        line(f"{name}, seconds", lambda step, name=name: step[name], "s")
    line("completion tokens", lambda step: step["tokens"], " ", more_is_better=True)
    line("tokens/s, rollout", lambda step: step["tokens"] / step["rollout"], " ", more_is_better=True)
    line("tokens/s, step", lambda step: step["tokens"] / step["step"], " ", more_is_better=True)
    line("peak memory", lambda step: step["memory"], "G")
    return "\n".join(lines)


if __name__ == "__main__":
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description=__doc__)
    parser.add_class_arguments(Work)
    parser.add_argument("--only", type=Literal["ours", "trl"] | None, default=None, help="run one side alone")
    arguments = parser.parse_args().as_dict()
    only, work = arguments.pop("only"), Work(**arguments)
    print(" ".join(f"{name}={value}" for name, value in asdict(work).items()))
    print(table(measure(work, [only] if only else ["ours", "trl"])))
