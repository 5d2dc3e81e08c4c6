"""ThinkJSON's rewards: an object that fills a schema, in a strict format (arXiv 2502.14905).

The JSON reward is 0.5 M + 0.5 S. M is the number of equal (path, value) pairs over the number of paths of either
object, S the length of the shorter canonical text over that of the longer one.
"""

import json
import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from rewards.answer_process import judged_all
from rewards.answers import answers
from rewards.base import Reward, needs
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper

Part = Literal["parsed", "match", "length", "noise", "exact", "valid"]
#: levels of objects and lists in an answer
DEEPEST = 100
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
    """The JSON object of a text.

    None for other values, repeated keys, NaN, infinite numbers, more than DEEPEST levels, or surrounding text.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and not _is_deeper(value, DEEPEST) else None


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value is nested in more levels than this; a loop, because recursion has a limit."""
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for item in layer
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return any(isinstance(item, (dict, list)) for item in layer)


def canonical(value: Any) -> str:
    """The canonical text of a JSON value: keys sorted, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], str]:
    """Canonical values by path; 1, 1.0, "1" and true are different, and an empty list or object is a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    values: dict[tuple[str | int, ...], str] = {}
    for key, item in inner:
        values |= leaves(item, (*path, key))
    return values or {path: canonical(value)}


def match_ratio(parsed: dict[str, Any], wanted: dict[str, Any]) -> float:
    """M: equal (path, value) pairs over the paths of either object."""
    ours, theirs = leaves(parsed), leaves(wanted)
    return len(ours.items() & theirs.items()) / len(set(ours).union(theirs))


def length_similarity(parsed: dict[str, Any], wanted: dict[str, Any]) -> float:
    """S: min / max of the lengths of the canonical texts."""
    lengths = sorted((len(canonical(parsed)), len(canonical(wanted))))
    return lengths[0] / lengths[1]


def noise_rate(parsed: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Fraction of the parsed object's paths that are not wanted."""
    ours = leaves(parsed).keys()
    return len(ours - leaves(wanted).keys()) / len(ours)


def object_text(answer: str) -> str:
    """The text in the last <answer> block, or all of it without one: object and format are scored separately."""
    return re.split(r"</answer>", answer.rsplit("<answer>", 1)[-1])[0].strip() if "<answer>" in answer else answer


def _validated(questions: Sequence[tuple[str, ...]]) -> list[Any]:
    """The judgements of questions about schemas, each in a process that can be ended."""
    try:
        return judged_all(questions)
    except ImportError as error:
        raise ConfigError(
            "validation against a schema needs the package jsonschema, which is not installed; run `pip install "
            "jsonschema`."
        ) from error


class _OnObjects(Reward):
    """Base class of rewards that score the object in every answer."""

    def __init__(self, validates: bool, weight: float, name: str | None) -> None:
        super().__init__(weight, name)
        self.validates = validates

    @abstractmethod
    def one(self, parsed: dict[str, Any] | None, wanted: dict[str, Any], valid: bool) -> float:
        """The score of an object; `parsed` is None if the answer is not an object."""

    def score(self, batch: RolloutBatch) -> list[float]:
        texts = [object_text(answer) for answer in answers(batch)]
        objects = [strict_object(text) for text in texts]
        schemas = [str(schema) for schema in batch.column("schema")]
        asked = [
            ("schema", schema, canonical(parsed))
            for schema, parsed in zip(schemas, objects, strict=True)
            if self.validates and parsed is not None
        ]
        verdicts = iter(_validated(asked))
        valid = [parsed is not None and (not self.validates or next(verdicts) is True) for parsed in objects]
        return [
            self.one(parsed, json.loads(answer), fits)
            for parsed, answer, fits in zip(objects, batch.column("answer"), valid, strict=True)
        ]

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "answer", *(["schema"] if self.validates else []))
        if not isinstance(row["answer"], str) or strict_object(row["answer"]) is None:
            raise ConfigError(
                f"the reward {self.name!r} needs JSON objects, but the answer of row {row.get('id')!r} is "
                f"{row['answer']!r}; correct or remove the row."
            )
        if self.validates:
            (fault,) = _validated([("schema_fault", str(row["schema"]))])
            if fault != "":
                raise ConfigError(
                    f"the reward {self.name!r} cannot use the schema of row {row.get('id')!r}: "
                    f"{fault or 'its check took too long'}. Correct or remove the row."
                )


class FilledSchema(_OnObjects):
    """`share` M + (1 - share) S for the object in the answer and the row's `answer`.

    0 if the object does not parse strictly or nothing matches.

    Args:
        share: weight of the match ratio; the paper does not state it.
        validate: whether an object that does not satisfy the row's JSON Schema (column `schema`) earns 0.
        weight, name: as in every reward.
    """

    is_correctness = True

    def __init__(
        self, share: float = 0.5, validate: bool = False, weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(validate, weight, name)
        if not 0 <= share <= 1:
            raise ConfigError(
                f"FilledSchema: share is {share}, but it is the weight of the match ratio; set it between 0 and 1."
            )
        self.share = share

    def one(self, parsed: dict[str, Any] | None, wanted: dict[str, Any], valid: bool) -> float:
        if parsed is None or not valid or not (match := match_ratio(parsed, wanted)):
            return 0.0  # a length alone would reward padding
        return self.share * match + (1 - self.share) * length_similarity(parsed, wanted)


class JsonPart(_OnObjects):
    """One statistic of the object, for metrics with a weight of 0.

    Args:
        part: parsed, match (M), length (S), noise (fraction of unwanted paths), exact, or valid under the row's JSON
            Schema. All are 0 if nothing parses.
        weight: factor in the total; 0 only logs.
        name: name in metrics; json_<part> by default.
    """

    def __init__(self, part: Part, weight: float = 0.0, name: str | None = None) -> None:
        super().__init__(part == "valid", weight, name or f"json_{part}")
        if part not in PARTS:
            raise ConfigError(f"JsonPart: part is {part!r}; choose one of {', '.join(PARTS)}.")
        self.part, self.is_correctness = part, part == "exact"

    def one(self, parsed: dict[str, Any] | None, wanted: dict[str, Any], valid: bool) -> float:
        if parsed is None:
            return 0.0
        parts = {"match": match_ratio, "length": length_similarity, "noise": noise_rate}
        if self.part in parts:
            return parts[self.part](parsed, wanted)
        return float({"parsed": True, "exact": canonical(parsed) == canonical(wanted), "valid": valid}[self.part])


class ThinkAnswerFormat(Reward):
    """1 if the completion is one think block, one answer block and nothing else, else 0.

    A <think> at the end of the prompt counts as part of the completion.
    """

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
    effect="answers that parse 0.26 → 0.98, values 0.19 → 0.95",
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
        claims=(
            Claim(text="most objects parse after training", column="parse rate", sign=1, against="start"),
            Claim(text="values are filled rightly", column="M", sign=1, against="start"),
            Claim(
                text="parts of the reward teach what exact objects alone do not",
                column="M",
                sign=1,
                against="grpo, equal tokens",
            ),
        ),
    ),
)
