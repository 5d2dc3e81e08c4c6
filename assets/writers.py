"""Writers of texts for data steps: a model with any engine, an HTTP endpoint, a rule.

They write the solutions and the critiques of `assets/critiques.py` and the answers of `assets/sleep_data.py`.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from policies import Policy, PolicyParams
from rewards import Failure, HTTPJudge
from rollouts import EmbeddedEngine, Engine, SamplingParams
from support.errors import ConfigError
from support.seeding import derive_seed, isolated_rng

Row = dict[str, Any]


class Writer(ABC):
    """Writes texts for the prompts of data rows.

    Args:
        name: its name in messages and in the column `writer` of what it wrote; the class's name if None.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or type(self).__name__

    @abstractmethod
    def write(self, rows: list[Row], samples: int, seed: int) -> list[list[str]]:
        """Up to `samples` texts per row, in the order of the rows; fewer, or none, where it failed.

        Args:
            rows: data rows with `prompt`; a rule also reads other columns.
            seed: seed of the draws.
        """

    def texts(self, rows: list[Row], samples: int, seed: int) -> list[list[str]]:
        """The texts of `write` that are not blank. Raises ConfigError if all are."""
        texts = [[text for text in of_row if text.strip()] for of_row in self.write(rows, samples, seed)]
        if not any(texts):
            raise ConfigError(
                f"{self.name} wrote nothing for {len(rows)} prompts, the first {str(rows[0]['prompt'])[:60]!r}"
                f"{self.reason()}. Check what it is (its model, URL or rule), or take it out of the configuration."
            )
        return texts

    def reason(self) -> str:
        """The reason for the latest missing text, for messages."""
        return ""


class ModelWriter(Writer):
    """Samples a model. A text that was cut off at sampling.max_new_tokens is left out.

    Args:
        policy: the model.
        sampling: how texts are drawn; up to 1,024 tokens if None.
        engine: what generates; the embedded engine if None.
        batch: prompts sampled at once.
        name: as in every writer; the model's name if None.
    """

    def __init__(
        self,
        policy: PolicyParams,
        sampling: SamplingParams | None = None,
        engine: Engine | None = None,
        batch: int = 64,
        name: str | None = None,
    ) -> None:
        super().__init__(name or policy.model)
        if batch < 1:
            raise ConfigError(f"ModelWriter: batch is {batch}; it must be at least 1.")
        self.policy, self.sampling = policy, sampling or SamplingParams(max_new_tokens=1024)
        self.engine, self.batch, self.cut_off = engine or EmbeddedEngine(), batch, 0

    @torch.no_grad()
    def write(self, rows: list[Row], samples: int, seed: int) -> list[list[str]]:
        policy, texts = Policy(self.policy), []
        for start in range(0, len(rows), self.batch):
            part = [{"id": f"{start + place}"} | row for place, row in enumerate(rows[start : start + self.batch])]
            with isolated_rng("writer", seed, self.name):
                rollout = self.engine.generate(
                    policy, [policy.encode(row["prompt"]) for row in part], part, samples, self.sampling
                )
            pairs = list(zip(rollout.completions, rollout.finish_reasons, strict=True))
            self.cut_off += sum(reason == "length" for _, reason in pairs)
            for place in range(0, len(pairs), samples):
                texts.append([text for text, reason in pairs[place : place + samples] if reason != "length"])
        return texts

    def reason(self) -> str:
        return f" ({self.cut_off} texts were cut off at sampling.max_new_tokens={self.sampling.max_new_tokens})"


class HTTPWriter(Writer):
    """Texts of an HTTP endpoint, which replies to POST {"prompts": [...], <column>: [...]} with {"texts": [...]}.

    Args:
        judge: the endpoint, its time limit, retries, columns and token, as of the judge that gives scores.
        name: as in every writer; the endpoint's URL if None.
    """

    def __init__(self, judge: HTTPJudge, name: str | None = None) -> None:
        super().__init__(name or judge.url)
        self.judge, self.failure = judge, ""

    def write(self, rows: list[Row], samples: int, seed: int) -> list[list[str]]:
        for row in rows:
            self.judge.check_columns(row)
        repeated = [row for row in rows for _ in range(samples)]
        payload = {"prompts": [row["prompt"] for row in repeated]}
        payload |= {column: [row[column] for row in repeated] for column in self.judge.columns}
        replies = self.judge.replies(payload, "texts", _text)
        failures = [reply for reply in replies if isinstance(reply, Failure)]
        self.failure = f" ({failures[-1].message})" if failures else ""
        texts = ["" if isinstance(reply, Failure) else reply for reply in replies]
        return [texts[place : place + samples] for place in range(0, len(texts), samples)]

    def reason(self) -> str:
        return self.failure


class RuleWriter(Writer):
    """Texts of a function of a data row and a random generator.

    Args:
        rule: the function, such as datamodules.critiques.critique; it returns "" where it does not apply.
        name: as in every writer; the function's name if None.
    """

    def __init__(self, rule: Callable[[Row, random.Random], str], name: str | None = None) -> None:
        super().__init__(name or getattr(rule, "__name__", type(rule).__name__))
        self.rule = rule

    def write(self, rows: list[Row], samples: int, seed: int) -> list[list[str]]:
        rng = random.Random(derive_seed("writer", seed, self.name))
        return [[self.rule(row, rng) for _ in range(samples)] for row in rows]


def _text(reply: object) -> str | Failure:
    if not isinstance(reply, str) or not reply.strip():
        return Failure("error", f"the text {str(reply)[:50]!r} is empty or not a text")
    return reply
