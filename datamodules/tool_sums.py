"""Demonstrations of a reasoner that can run Python but does so badly, the initial policy of CoRT.

As the reasoning models of CoRT (arXiv 2506.09820), it knows how to write code blocks and how to read their outputs, and
uses them inefficiently: by itself it mostly works by hand, where longer sums go wrong. After a hint at the start of its
reasoning it mostly works by hand first and checks by code (delayed code), or checks the output by hand (distrust). It
also understands two cues: one to stop working by hand, one to believe an output.
"""

import random
from typing import Any

from datamodules.arithmetic import SLIP_BY_LEVEL, problem, trace
from support.seeding import derive_seed

#: the hint at the start of the reasoning, the cue at the onset of work by hand, and the one behind an output; a fence
#: opens a block at the beginning of a line only
HINT, USE_CODE, BELIEVE = "Use Python.\n", "Too long, so Python.\n", "That is right. "
#: weights of the ways of working, by hand alone, delayed code, distrust, code at once
PLAIN_WAYS, HINTED_WAYS = (70, 14, 10, 6), (10, 45, 30, 15)
Turns = list[dict[str, str]]


def code_block(a: int, b: int) -> str:
    """The block that adds two numbers of the same length, up to its closing fence.

    It adds digit by digit without carries, because this small model reads digits well and copies whole numbers badly.
    """
    digits = zip(reversed(str(a)), reversed(str(b)), strict=True)
    terms = [f"{10**place}*({x}+{y})" if place else f"{x}+{y}" for place, (x, y) in enumerate(digits)]
    return f"```python\n{'+'.join(terms)}\n```\n"


def output_block(total: int) -> str:
    """The output that an environment puts behind the block."""
    return f"```output\n{total}\n```\n"


def said(text: str) -> dict[str, str]:
    """A part that the policy writes."""
    return {"role": "assistant", "content": text}


def given(text: str) -> dict[str, str]:
    """A part that others write."""
    return {"role": "output", "content": text}


def worked(way: int, a: int, b: int, steps: str, answer: str) -> Turns:
    """The turns of one way of working.

    Args:
        way: index in PLAIN_WAYS.
        steps, answer: of the work by hand.
    """
    code, output = said(code_block(a, b)), given(output_block(a + b))
    if way == 0:
        return [said(f"{steps}</think>{answer}")]
    if way == 1:
        return [said(f"{steps}\n{code['content']}"), output, said(f"</think>{a + b}")]
    if way == 2:
        return [code, output, said(f"{steps}</think>{answer}")]
    return [code, output, said(f"</think>{a + b}")]


def cued(a: int, b: int, steps: str, answer: str, rng: random.Random) -> Turns:
    """Work by hand that a cue ends after some columns, and an output that is believed behind the other cue."""
    columns = steps.split(", ")
    begun = "".join(f"{column}, " for column in columns[: rng.randrange(len(columns))])
    before = [said(begun), given(USE_CODE)] if begun else [given(USE_CODE)]
    believes = rng.random() < 0.7
    after = [given(BELIEVE), said(f"</think>{a + b}")] if believes else [said(f"{steps}</think>{answer}")]
    turns = [*before, said(code_block(a, b)), given(output_block(a + b)), *after]
    return turns if turns[0]["role"] == "assistant" else [said(""), *turns]


def tool_demonstrations(size: int, seed: int) -> list[dict[str, Any]]:
    """Rows of three to six digits: half without a hint, a fifth with HINT as a given prefix, the others with cues."""
    rng = random.Random(derive_seed("tool demonstrations", seed))
    rows = []
    for index in range(size):
        level = 3 + index % 4
        row = problem(level, rng, held_out=False)
        a, b = map(int, row["prompt"][:-2].split("+"))
        steps, answer = trace(a, b, rng, SLIP_BY_LEVEL[level])
        kind = rng.random()
        if kind < 0.7:
            ways = PLAIN_WAYS if kind < 0.5 else HINTED_WAYS
            row["response"] = worked(rng.choices(range(4), ways)[0], a, b, steps, answer)
        else:
            row["response"] = cued(a, b, steps, answer, rng)
        row["prefix"] = HINT if 0.5 <= kind < 0.7 else ""
        rows.append(row)
    return rows
