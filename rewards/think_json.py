"""ThinkJSON's rewards: an object that fills a schema, in a strict format (arXiv 2502.14905).

JSON reward 0.5 M + 0.5 S: M = equal (path, value) pairs / paths of either object, S = the shorter canonical text's length / the longer one's.
"""

import json
import math
import re
from abc import abstractmethod
from functools import lru_cache
from typing import Any, Literal

from rewards.answers import answer_text
from rewards.base import Reward, needs
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.papers import Experiment, Paper

Part = Literal["parsed", "match", "length", "noise", "exact", "valid"]
PARTS: tuple[Part, ...] = ("parsed", "match", "length", "noise", "exact", "valid")
_BLOCKS = re.compile(
    r"\s*<think>((?!</?(?:think|answer)>)[\s\S])*</think>\s*<answer>((?!</?(?:think|answer)>)[\s\S])*</answer>\s*"
)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def strict_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; None for anything else, a repeated key, NaN, an infinite number or text around it."""
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def canonical(value: Any) -> str:
    """The one text of a JSON value: keys sorted, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], str]:
    """Canonical values by path; 1, 1.0, "1" and true are different, and an empty list or object is a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: dict[tuple[str | int, ...], str] = {}
    for key, item in inner:
        found |= leaves(item, (*path, key))
    return found or {path: canonical(value)}


def match_ratio(given: dict[str, Any], wanted: dict[str, Any]) -> float:
    """M: equal (path, value) pairs over the paths of either object."""
    ours, theirs = leaves(given), leaves(wanted)
    return len(ours.items() & theirs.items()) / len(set(ours).union(theirs))


def length_similarity(given: dict[str, Any], wanted: dict[str, Any]) -> float:
    """S: min / max of the lengths of the canonical texts."""
    lengths = sorted((len(canonical(given)), len(canonical(wanted))))
    return lengths[0] / lengths[1]


def noise_rate(given: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Share of the given paths that are not wanted."""
    ours = leaves(given).keys()
    return len(ours - leaves(wanted).keys()) / len(ours)


def object_text(answer: str) -> str:
    """What stands in the last <answer> block, or everything if there is none, so that the object is rewarded apart from the format."""
    return re.split(r"</answer>", answer.rsplit("<answer>", 1)[-1])[0].strip() if "<answer>" in answer else answer


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise ConfigError(
            "validating against a schema needs the package jsonschema: pip install jsonschema."
        ) from error
    return jsonschema.validators.validator_for(json.loads(schema))(json.loads(schema))


class _OnObjects(Reward):
    """Scores the object in every answer, None where there is none."""

    def __init__(self, validates: bool, weight: float, name: str | None) -> None:
        super().__init__(weight, name)
        self.validates = validates

    @abstractmethod
    def one(self, given: dict[str, Any] | None, wanted: dict[str, Any], valid: bool) -> float:
        """The score of an object, None where the answer is none."""

    def score(self, batch: RolloutBatch) -> list[float]:
        texts = [
            object_text(answer_text(text, opened)) for text, opened in zip(batch.completions, batch.opened, strict=True)
        ]
        found = []
        for text, answer, schema in zip(texts, batch.column("answer"), batch.column("schema"), strict=True):
            given = strict_object(text)
            valid = given is not None and (not self.validates or _validator(schema).is_valid(given))
            found.append(self.one(given, json.loads(answer), valid))
        return found

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "answer", *(["schema"] if self.validates else []))
        if not isinstance(row["answer"], str) or strict_object(row["answer"]) is None:
            raise ConfigError(
                f"the reward {self.name!r} needs JSON objects, but the answer of row {row.get('id')!r} is {row['answer']!r}."
            )
        if self.validates:
            _validator(str(row["schema"]))


class FilledSchema(_OnObjects):
    """`share` M + (1 - share) S of the object in the answer against the row's `answer`; 0 if it does not parse strictly or nothing matches.

    Args:
        share: of the match ratio. The paper combines both and does not state the weights.
        validate: an object that does not satisfy the row's JSON Schema (column `schema`) earns 0.
        weight, name: as in every reward.
    """

    is_correctness = True

    def __init__(
        self, share: float = 0.5, validate: bool = False, weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(validate, weight, name)
        if not 0 <= share <= 1:
            raise ConfigError(
                f"FilledSchema: share is {share}; it is the match ratio's share of the reward, between 0 and 1."
            )
        self.share = share

    def one(self, given: dict[str, Any] | None, wanted: dict[str, Any], valid: bool) -> float:
        if given is None or not valid or not (match := match_ratio(given, wanted)):
            return 0.0  # a length alone would reward padding
        return self.share * match + (1 - self.share) * length_similarity(given, wanted)


class JsonPart(_OnObjects):
    """One statistic of the object, for metrics with a weight of 0: parsed, match (M), length (S), noise (keys that nobody asked for), exact or valid.

    Args:
        part: which; `valid` asks the row's JSON Schema. All are 0 where nothing parses.
        weight: 0 only logs. name: json_<part> by default.
    """

    def __init__(self, part: Part, weight: float = 0.0, name: str | None = None) -> None:
        super().__init__(part == "valid", weight, name or f"json_{part}")
        if part not in PARTS:
            raise ConfigError(f"JsonPart: part is {part!r}; choose one of {', '.join(PARTS)}.")
        self.part, self.is_correctness = part, part == "exact"

    def one(self, given: dict[str, Any] | None, wanted: dict[str, Any], valid: bool) -> float:
        if given is None:
            return 0.0
        parts = {"match": match_ratio, "length": length_similarity, "noise": noise_rate}
        if self.part in parts:
            return parts[self.part](given, wanted)
        return float({"parsed": True, "exact": canonical(given) == canonical(wanted), "valid": valid}[self.part])


class ThinkAnswerFormat(Reward):
    """1 if the completion is one think block, one answer block and nothing else, else 0; a <think> that the prompt has opened counts as the completion's."""

    def score(self, batch: RolloutBatch) -> list[float]:
        whole = zip(batch.completions, batch.opened, strict=True)
        return [float(_BLOCKS.fullmatch(("<think>" if opened else "") + text) is not None) for text, opened in whole]


PAPER = Paper(
    name="think_json",
    title="ThinkJSON",
    arxiv="2502.14905",
    idea="rewards for objects that fill a schema",
    classes=("rewards.FilledSchema", "rewards.ThinkAnswerFormat", "datamodules.SchemaPrompts"),
    configs=("think_json",),
    effect="answers that parse 0.28 → 0.89; with a plain reward for exact objects 0.54",
    not_compared="its task is objects that fill a schema",
    experiment=Experiment(
        rollouts=120,
        arms={
            "think_json": {},
            "grpo": {
                "model.rewards": [
                    {"class_path": "rewards.JsonPart", "init_args": {"part": "exact", "weight": 1.0}},
                    {"class_path": "rewards.JsonPart", "init_args": {"part": "parsed"}},
                    {"class_path": "rewards.JsonPart", "init_args": {"part": "match"}},
                    {"class_path": "rewards.ThinkAnswerFormat", "init_args": {"weight": 0.0}},
                ]
            },
        },
        columns={
            "parse rate": "val/reward/json_parsed",
            "M": "val/reward/json_match",
            "exact": "val/pass1",
            "format": "val/reward/think_answer_format",
        },
        expect="The parse rate rises from below 30 % to above 90 %, and M after it.",
        validate_every=10,
    ),
)
