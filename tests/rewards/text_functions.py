"""The functions that read texts of others, each as a call of one text, which test_complexity.py measures.

A function of the project that takes a text has a row here, or a reason."""

import ast
import importlib
import random
from collections.abc import Callable, Iterator
from functools import partial

import torch

from assets.make_untrained import reasoner_tokenizer
from callbacks.findings_at_start import CUED, MARKS, SPOKEN
from rewards import Reward, answers, math_compare, math_text, quantities
from rewards.instructions import KINDS
from rewards.math_algebra import NeedsAlgebra
from rewards.math_compare import Unreadable
from support.errors import ConfigError
from tests.fuzz.test_completions import REWARDS, ROW
from tests.rewards.patterns import module_of, sources
from tests.rewards.test_rewards import batch_of

#: packages whose functions are looked at; the others hand texts to these
PARSING = ("environments", "rewards", "rollouts", "policies", "datamodules", "cli", "support", "tracking")
#: parameters that name something: a file, a class, a column, a part of the program
NAMES = {
    *("alias", "argument", "character", "checkpoint", "class_path", "colour", "command", "context", "data"),
    *("entry_point", "example", "export", "field", "first_unit", "folder", "key", "kind", "made_from", "mark"),
    *("method", "model", "module", "name", "owner", "paper", "part", "path", "place", "prefix", "run", "script"),
    *("second_unit", "split", "stage", "subset", "task_type", "title", "uri", "way", "what", "where", "who"),
}
#: types of texts
TEXTS = ("str", "str | None", "list[str]")
#: functions that take a text and are not measured, by the reason
NOT_MEASURED = {
    "the project's own texts": {
        "cli.chat.load", "cli.chat.once", "cli.command_line.completed", "cli.inspect.coloured",
        "cli.own_configurations.remember_as_own", "cli.suggestions.explain", "datamodules.arithmetic.is_held_out",
        "datamodules.gym_demonstrations.add_columns",
        "datamodules.gym_demonstrations.divide", "datamodules.gym_demonstrations.halve",
        "datamodules.gym_demonstrations.number_letters", "datamodules.gym_demonstrations.tally",
        "datamodules.human_eval.human_eval", "datamodules.records_desk.fact", "datamodules.saturn.clauses_for",
        "datamodules.saturn.draw", "datamodules.self_verify.check", "datamodules.self_verify.check_prompt",
        "datamodules.self_verify.verify_row", "datamodules.sleep.plan", "datamodules.tool_sums.cued",
        "datamodules.tool_sums.given", "datamodules.tool_sums.said", "datamodules.tool_sums.worked",
        "datamodules.think_json.careless",
        "datamodules.think_json.check_prompt", "datamodules.think_json.draw_row", "rewards.code.passed",
        "datamodules.code_styles.program", "datamodules.word_programs.code_of_steps",
        "datamodules.word_programs.expressions", "datamodules.word_programs.oracle",
        "datamodules.word_programs.steps_of",
        "tracking.__main__.main", "tracking.run_names.makes_a_method",
    },
    "runs in a process that is ended": {
        "rewards.math_algebra.readable_by_algebra", "rewards.schemas.fits", "rewards.schemas.schema_fault",
    },
    "hands the text to a tokenizer or a file": {
        "datamodules.rows.read_rows", "policies.embedder.fertility", "policies.embedder.split_words",
        "policies.choice_scores.continuation",
        "policies.given.score_completions", "policies.supervised.encode_response",
        "rollouts.written.text_batch",
        "rollouts.written.written", "support.files.atomic_write_text",
    },
    "2 to the number of variables, which saturn.py bounds": {"datamodules.saturn.chance"},
}  # fmt: skip
BOUNDS = {"at_least": 1}
INSTRUCTIONS = {
    "keywords": {"words": ["answer"]}, "forbidden_words": {"words": ["answer"]}, "letter": {"character": "a", **BOUNDS},
    "starts_with": {"phrase": "a"}, "ends_with": {"phrase": "a"},
    "case": {"which": "upper"}, "language": {"script": "LATIN"}, "one_of": {"options": ["a"]}, "json": {}, "quoted": {},
    "title": {}, "postscript": {}, "no_commas": {},
}  # fmt: skip
#: measured with the text as the only argument
ALONE = [
    "rewards.choices.stated_letters", "rewards.choices.stated_letter", "rewards.code.code_of",
    "rewards.language.words_by_script", "rewards.math_compare.is_clean",
    "rewards.math_compare.is_comparable", "rewards.math_text.boxes", "rewards.math_text.last_box",
    "rewards.math_text.answers_in", "rewards.math_text.spelled", "rewards.math_text.key", "rewards.math_text.words_of",
    "rewards.math_text.time_of", "rewards.math_text.is_text", "rewards.math_text.is_readable",
    "rewards.math_text.elements", "rewards.math_text.bracketed", "rewards.number_text.plain",
    "rewards.number_text.plain_decimals", "rewards.real_sets.real_set",
    "rewards.number_text.last_number", "rewards.number_text.number_of",
    "rewards.quantities.unit_name", "rewards.quantities.based", "rewards.self_verify.verdict_of",
    "datamodules.critiques.shown", "rewards.still3.action_count", "rewards.tasks.is_value", "rewards.tasks.is_endless",
    "rewards.tasks.task_of", "datamodules.authorship.without_comments", "datamodules.authorship.template_key",
    "rewards.think_json.strict_object", "rewards.think_json.object_text", "rewards.units.unit_of",
    "rewards.units.is_unit", "rollouts.batch.ends_open", "datamodules.garak.split_of",
    "datamodules.preferences.parse_dialogue", "datamodules.records_desk.parse_request", "datamodules.saturn.literals",
    "support.errors.printable", "support.files.names_a_file", "environments.tools.is_failure",
    "environments.call_formats.last_block",
    "cli.earlier_configurations.brought_up_to_date",
]  # fmt: skip
#: measured with these arguments; ... stands for the text
WITH: dict[str, list[tuple[object, ...]]] = {
    "datamodules.perturbations.lengthened": [(..., 10_000, random.Random(0))],
    "datamodules.thinker.turn_prompt": [(...,)],
    "rewards.code.program_of": [("def f(x):\n", ..., "f"), (..., "return 1", "f")],
    "rewards.code.caller_of": [(..., "", "f"), ("assert f(1) == 1", ..., "f")],
    "rewards.code.same_output": [(..., "1"), ("1", ...)],
    "rewards.math_compare.grade": [("42", ...), ("Evelyn", ...), ("1, 2", ...), (..., "\\boxed{5}"), (..., ...)],
    "rewards.math_compare.same": [("x+1", ...), (..., "x+1")],
    "rewards.math_text.split_top": [(..., (",", ";"))],
    "rewards.number_text.numbers": [(..., 3)],
    "rewards.quantities.quantity": [(..., True)],
    "rewards.self_check.answer_text": [(..., True)],
    "rewards.tasks.is_unsafe": [(..., "coin_flip"), (..., "rubiks_cube")],
    "cli.chat.folded": [(..., True), (..., False)],
    "environments.tools.clipped": [(..., 400, 400)],
    "policies.prompt_encoding.encode_content": [(reasoner_tokenizer(), ..., ())],
    "policies.prompt_encoding.encode_cut": [(reasoner_tokenizer(), ..., "\x00")],
    "datamodules.records_desk.true_cost": [("what is x ?", ...), (..., "x")],
    "datamodules.records_desk.true_reward": [("what is x ?", ...), (..., "x")],
    "datamodules.sleep.instruction": [(..., [])],
    "datamodules.saturn.satisfied": [("(A) & (!B)", ...), (..., "01")],
}


def text_functions() -> Iterator[str]:
    """Every public function of a module that takes a text, as module.name."""
    for path, tree in sources():
        if not module_of(path).startswith(PARSING) or "sandbox" in path.parts:
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                kinds = {one.arg: ast.unparse(one.annotation) for one in arguments if one.annotation is not None}
                if any(kind.replace("Sequence", "list") in TEXTS for arg, kind in kinds.items() if arg not in NAMES):
                    yield f"{module_of(path)}.{node.name}"


#: caches that would answer for a function that is called again with the same text
CACHES = [
    function
    for module in (math_text, math_compare, quantities, answers)
    for function in vars(module).values()
    if hasattr(function, "cache_clear")
]


def with_text(function: Callable[..., object], arguments: tuple[object, ...]) -> Callable[[str], object]:
    """The function of a text alone, without its caches and the errors that it may raise for a text."""

    def call(text: str) -> object:
        for cached in CACHES:
            cached.cache_clear()
        try:
            return function(*(text if argument is ... else argument for argument in arguments))
        except (NeedsAlgebra, Unreadable, ValueError, SyntaxError, RecursionError, MemoryError, ConfigError):
            return None

    return call


def of_a_reward(reward: Reward) -> Callable[[str], object]:
    """The reward of a completion, whose group has another one that is right."""

    def call(text: str) -> object:
        batch = batch_of([text, "x"], [ROW], "Which longer words are here?")
        correct = torch.tensor([1.0, 1.0])
        batch.rewards |= {other.correctness: correct for other in REWARDS if hasattr(other, "correctness")}
        return reward(batch)

    return call


def measured() -> dict[str, Callable[[str], object]]:
    """Name, with the arguments where there are several -> call."""
    calls: dict[str, Callable[[str], object]] = {}
    for name in [*ALONE, *WITH, *(f"rewards.instructions.{kind.__name__}" for kind in KINDS.values())]:
        module, _, function = name.rpartition(".")
        for number, arguments in enumerate(WITH.get(name, [(...,)])):
            key = name + f" {number}" * (len(WITH.get(name, ())) > 1)
            calls[key] = with_text(getattr(importlib.import_module(module), function), arguments)
    for kind, function in KINDS.items():
        calls[f"rewards.instructions.{function.__name__}"] = with_text(
            partial(function, **INSTRUCTIONS.get(kind, BOUNDS)), (...,)
        )
    calls |= {type(reward).__name__: of_a_reward(reward) for reward in REWARDS}
    return calls | {
        "marks of a chat": MARKS.search, "spoken prompts": SPOKEN.search, "cued prompts": CUED.search
    }  # fmt: skip
