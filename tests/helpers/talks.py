"""Small environments for tests, in modules of their own so that configurations and other processes can name them."""

import random
import time

from rewards import Reward
from rollouts import Environment, Reply


class Chat(Environment):
    """A user's turn after each of the policy's, and a reward that depends on what it wrote."""

    metrics = ("digits",)

    def __init__(self, turns: int = 3, max_turn_tokens: int = 8, waits: bool = False, overlap: int = 3) -> None:
        self.turns, self.max_turn_tokens, self.waits, self.overlap = turns, max_turn_tokens, waits, overlap
        self.max_turns = turns

    def reply(self, conversation):
        text, done = conversation.turns[-1].text, len(conversation.turns)
        digits = sum(c.isdigit() for c in text)
        if done == self.turns:
            return Reply(reward=digits / 8, metrics={"digits": digits})
        content = f"{conversation.row.get('id')}:{digits} of {len(text)}"
        return Reply(messages=[{"role": "user", "content": content}], reward=digits / 8, metrics={"digits": digits})


class Fuzz(Environment):
    """Replies of every kind, drawn from the conversation's own seed, some of them slow."""

    max_turns, metrics = 6, ("replies",)

    def __init__(self, waits: bool = False, overlap: int = 2, stop: tuple[str, ...] = ("7", "+1")) -> None:
        self.waits, self.overlap, self.stop, self.max_turn_tokens = waits, overlap, stop, 9
        self.said: dict[int, list[Reply]] = {}

    def reply(self, conversation):
        draw = random.Random(f"{conversation.seed} {len(conversation.turns)}")
        if self.waits:
            time.sleep(random.random() * 0.004)
        kind = draw.random()
        text = "".join(draw.choice("0123456789+=? \n`<>") for _ in range(draw.randrange(7)))
        common = {
            "reward": draw.choice([None, draw.random()]),
            "max_tokens": draw.choice([None, 1, 2, 12]),
            "stops": draw.random() < 0.7,
            "metrics": {"replies": 1},
        }
        if kind < 0.15:
            reply = Reply(reward=1.0)
        elif kind < 0.5:
            reply = Reply(text=text, **common)
        elif kind < 0.6:
            reply = Reply(text=draw.choice(["", "</think><eos><user>"]), **common)
        else:
            role = draw.choice(["user", "tool"])
            reply = Reply(messages=[{"role": role, "content": text}] * draw.choice([1, 1, 2]), **common)
        self.said.setdefault(conversation.seed, []).append(reply)
        return reply


class Sometimes(Reward):
    """Right for about a third of what an untrained model answers, which is mostly nothing: it depends on the prompt."""

    is_correctness = True

    def score(self, batch):
        prompts = batch.column("prompt")
        return [
            float((len(text) + len(str(prompt))) % 3 == 0)
            for text, prompt in zip(batch.completions, prompts, strict=True)
        ]
