"""A conversation with a trained policy in the terminal.

    python main.py chat --ckpt_path last                        # the newest run's policy
    python main.py chat --ckpt_path last --against start        # the policy before training answers too
    python main.py chat --ckpt_path exports/my_policy           # an exported folder
    python main.py chat --ckpt_path last --prompt "12+30=?"     # one answer, for scripts

Prompts are encoded, and answers sampled, as in the run's validation. Thinking is folded; /think shows it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import Strategy

from policies import Policy
from rollouts import EmbeddedEngine, Engine, SamplingParams
from support.errors import ConfigError
from support.seeding import isolated_rng, run_seed

HELP = "/think shows the latest thinking, /new begins a new conversation, /quit (or the end of the input) leaves"
THINKING = ("<think>", "</think>")


@dataclass
class Answer:
    """An answer of a policy.

    Args:
        text: what it says after its thinking.
        thinking: what it thought, empty if it did not think.
        tokens, seconds: of the whole completion.
        cut_off: whether it reached `max_new_tokens`.
    """

    text: str
    thinking: str
    tokens: int
    seconds: float
    cut_off: bool

    def facts(self, thinking_tokens: int) -> str:
        """Length, speed and how it ended, in one line."""
        thought = f"{thinking_tokens} of thinking, " if self.thinking else ""
        speed = f"{self.tokens / max(self.seconds, 1e-9):,.0f} tokens per second"
        return f"[{self.tokens} tokens, {thought}{speed}{', cut off' if self.cut_off else ''}]"


class Speaker:
    """A policy that answers.

    Args:
        name: its name in the terminal.
        module: the module whose prompts, engine and sampling settings are used.
        policy: the policy; the module's own, or another of the same tokenizer.
        sampling: settings of the samples.
    """

    def __init__(self, name: str, module: Any, policy: Policy, sampling: SamplingParams) -> None:
        self.name, self.module, self.policy, self.sampling = name, module, policy, sampling
        self.engine: Engine = getattr(module, "engine", None) or EmbeddedEngine()
        self.messages: list[dict[str, str]] = []
        self.latest: Answer | None = None

    @torch.no_grad()
    def answer(self, text: str, turn: int) -> Answer:
        """Answer a message, and keep both in the conversation if the model's tokenizer has a chat template.

        Raises:
            ConfigError: the conversation is longer than the model's context.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        row = {"prompt": messages if self.policy.tokenizer.chat_template else text, "id": f"chat {turn}"}
        with self._acting():
            ids = self.module.prompt_tokens(row) if hasattr(self.module, "prompt_tokens") else self._encode(row)
            room = None if self.policy.context is None else self.policy.context - len(ids)
            if room is not None and room < 1:
                raise ConfigError(f"the conversation has {len(ids)} tokens, and the model's context is full; say /new.")
            length = self.sampling.max_new_tokens
            sampling = replace(self.sampling, max_new_tokens=length if room is None else min(length, room))
            began = time.perf_counter()
            self.policy.check([ids])
            with isolated_rng("chat", run_seed()):
                batch = self.engine.generate(self.policy, [ids], [row], 1, sampling)
        thinking, said = folded(batch.completions[0], batch.opened[0])
        seconds, tokens, cut_off = time.perf_counter() - began, int(batch.lengths[0]), bool(batch.truncated[0])
        self.latest = Answer(said, thinking, tokens, seconds, cut_off)
        self.messages = [*messages, {"role": "assistant", "content": said}]
        return self.latest

    def _encode(self, row: dict[str, Any]) -> list[int]:
        return self.policy.encode(row["prompt"])

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """Let this policy stand in the module's place, so that the module's own prompts are used for it."""
        before, self.module.policy = self.module.policy, self.policy
        try:
            yield
        finally:
            self.module.policy = before

    def facts(self, answer: Answer) -> str:
        """The line below an answer."""
        ids = self.policy.tokenizer(answer.thinking, add_special_tokens=False)["input_ids"]
        return answer.facts(len(ids))


def folded(completion: str, opened: bool) -> tuple[str, str]:
    """(thinking, answer) of a completion.

    Args:
        opened: whether the prompt ends inside a block of thinking.
    """
    start, end = THINKING
    before, closed, after = completion.partition(end)
    if not (opened or start in before or closed):
        return "", completion.strip()
    if not closed and start in before:
        said, _, thinking = before.partition(start)
        return thinking.strip(), said.strip()
    return before.replace(start, "").strip(), after.strip()


def load(module: Any, ckpt_path: str | None, strategy: Strategy) -> None:
    """Build the module's policy, load the weights of a checkpoint into it, and bring it to the device.

    Raises:
        ConfigError: for a module without a policy that generates, and for a checkpoint in shards.
    """
    if ckpt_path is not None and Path(ckpt_path).is_dir():
        raise ConfigError(
            f"{ckpt_path} is a checkpoint in shards, which chat does not load; convert it to a file with "
            "torch.distributed.checkpoint.format_utils (docs/scaling.md), or export the policy with "
            "callbacks.ExportPolicy and name the exported folder."
        )
    module.configure_model()
    if not isinstance(module.policy, Policy):
        raise ConfigError(
            f"{type(module).__name__} trains a model that scores, which cannot be talked to; name a checkpoint of a "
            "method that generates, such as GRPO or SFT."
        )
    if ckpt_path is not None:
        checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    module.to(strategy.root_device)
    module.eval()


def speakers(module: Any, against: Literal["start"] | None, changes: dict[str, Any]) -> list[Speaker]:
    """The trained policy, and the one before training if `against` asks for it.

    Args:
        changes: sampling settings that replace those of the run's validation.
    """
    sampling = getattr(module, "evaluation_sampling", None) or SamplingParams(max_new_tokens=512)
    sampling = replace(sampling, **{name: value for name, value in changes.items() if value is not None})
    present = [Speaker("policy", module, module.policy, sampling)]
    if against == "start":
        with isolated_rng("initialisation", run_seed()):
            start = Policy(module.policy_params)
        present.append(Speaker("start", module, start.to(module.policy.device).eval(), sampling))
    return present


def once(present: list[Speaker], prompt: str, show_thinking: bool, say: Callable[[str], None] = print) -> None:
    """Answer one prompt: the text alone, behind names if there are several policies."""
    for speaker in present:
        answer = speaker.answer(prompt, 0)
        thinking = f"<think>{answer.thinking}</think>" if show_thinking and answer.thinking else ""
        say(f"{speaker.name}: {thinking}{answer.text}" if len(present) > 1 else thinking + answer.text)


def converse(present: list[Speaker], show_thinking: bool, ask: Callable[[str], str] = input) -> None:
    """Read lines and answer them until the input ends or /quit."""
    print(HELP)
    if not present[0].policy.tokenizer.chat_template:
        print("The tokenizer has no chat template, so every line is a prompt of its own.")
    turn = 0
    while True:
        try:
            line = ask("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            for speaker in present:
                speaker.messages, speaker.latest = [], None
        elif line == "/think":
            for speaker in present:
                print(f"{speaker.name} thought: {(speaker.latest and speaker.latest.thinking) or 'nothing'}")
        elif line.startswith("/"):
            print(f"{line.split()[0]} is not a command: {HELP}")
        elif line:
            turn += 1
            for speaker in present:
                _answer_aloud(speaker, line, turn, show_thinking)


def _answer_aloud(speaker: Speaker, line: str, turn: int, show_thinking: bool) -> None:
    try:
        answer = speaker.answer(line, turn)
    except ConfigError as error:
        print(f"{speaker.name}: {error}")
        return
    if show_thinking and answer.thinking:
        print(f"{speaker.name} thinks: {answer.thinking}")
    unfinished = "(no answer yet: it was cut off while it thought)" if answer.cut_off else "(an empty answer)"
    print(f"{speaker.name}> {answer.text or unfinished}\n  {speaker.facts(answer)}", flush=True)


def exported_folder(name: str) -> list[str] | None:
    """Words of a command line for the policy of an exported folder; None if the name is no such folder."""
    folder = Path(name)
    if not (folder / "config.json").is_file():
        return None
    return [
        "--model=lightning_modules.GRPO",
        f"--model.policy.model={folder}",
        '--model.rewards=[{"class_path": "rewards.ExactAnswer"}]',
        "--model.sampling.max_new_tokens=512",
        "--data=datamodules.ArithmeticPrompts",
    ]
