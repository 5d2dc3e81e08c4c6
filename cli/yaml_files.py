"""YAML files from anywhere: read as plain data of bounded size, or refused with the place of the mistake."""

from pathlib import Path
from typing import Any

import yaml

from support.errors import ConfigError

#: values of a configuration, each alias counted with all that it stands for; the largest shipped one has some hundreds
MOST_VALUES = 100_000


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice in one mapping, where YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} occurs twice in this mapping", problem_mark=key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: for a file that is not text in UTF-8 or not valid YAML, with a repeated key, whose aliases stand
            for more than MOST_VALUES values or for themselves, or that is nested too deeply.
    """
    try:
        loader = _UniqueKeys(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            if node is not None and _values(node, {}) > MOST_VALUES:
                raise yaml.YAMLError(f"its aliases (*name) stand for more than {MOST_VALUES:,} values")
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        if isinstance(error, RecursionError):
            problem, hint = "it is nested too deeply", "Nest it less."
        elif "\\t" in problem:
            hint = "Indent with spaces instead of tabs."
        elif "occurs twice" in problem:
            hint = "Join the two into one."
        elif "aliases" in problem:
            hint = "Write the values out."
        elif isinstance(error, UnicodeDecodeError):
            hint = "Save the file as UTF-8."
        else:
            hint = "Correct this line." if mark else "Correct the file."
        raise ConfigError(f"{path} is not valid YAML{place}: {problem}. {hint}") from error


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """The number of values of a node, each alias counted with all that it stands for; infinite for its own alias."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is known; met inside itself
        children = node.value if isinstance(node.value, list) else []
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]
