"""Tools: plain functions, and objects whose calls within one completion share a state."""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from transformers.utils import get_json_schema

from support.errors import ConfigError


class ToolError(Exception):
    """A call that failed in a way that the model may read about.

    Args:
        timeout: whether it failed because it took too long.
    """

    def __init__(self, message: str, timeout: bool = False) -> None:
        super().__init__(message)
        self.timeout = timeout


class Tool(ABC):
    """A tool whose calls within one completion share a state; a plain function is enough for one without."""

    #: the name that calls give
    name: str

    @abstractmethod
    def session(self) -> Callable[..., Any]:
        """A function for the calls of one completion.

        It must return or raise within bounded time, and raise ToolError for what is the call's own fault.
        """

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """Its description for the chat template, as transformers' `get_json_schema` makes it of a function."""


def schemas(tools: Sequence[Tool | Callable[..., Any]]) -> dict[str, dict[str, Any]]:
    """The description of each tool by its name.

    Raises:
        ConfigError: a tool cannot be called or described, or two have one name.
    """
    described: dict[str, dict[str, Any]] = {}
    for tool in tools:
        schema = tool.schema() if isinstance(tool, Tool) else _function_schema(tool)
        name = str(schema["function"]["name"])
        if name in described:
            raise ConfigError(f"ToolEnvironment: two tools have the name {name!r}; rename one of them.")
        described[name] = schema
    if not described:
        raise ConfigError("ToolEnvironment: tools is empty; list at least one function.")
    return described


def _function_schema(function: Any) -> dict[str, Any]:
    if not callable(function) or not hasattr(function, "__name__"):
        raise ConfigError(
            f"ToolEnvironment: the tool {function!r:.80} is not a function; give a function with type hints, or an "
            "environments.Tool."
        )
    try:
        schema: dict[str, Any] = get_json_schema(function)
    except Exception as error:  # transformers raises several kinds, all of them about the function's form
        raise ConfigError(
            f"ToolEnvironment: the tool {function.__name__} cannot be described to the model: {error} Give it a "
            "docstring with a section `Args:` that describes each argument, and a type hint for each."
        ) from error
    return schema


def check_arguments(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Raise ToolError if a function does not take these arguments."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ToolError(f"wrong arguments: {error}") from error
    except ValueError:  # a function of C, which has no signature
        return


def as_text(output: Any) -> str:
    """A tool's output as text: "" for None, JSON for other objects."""
    if output is None:
        return ""
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False, default=str)


def clipped(text: str, head: int, tail: int) -> str:
    """The first and the last characters of a text that is longer than both together."""
    if len(text) <= head + tail:
        return text
    left_out = len(text) - head - tail
    return f"{text[:head]}\n... {left_out} characters left out ...\n{text[len(text) - tail :]}"


def is_failure(output: str) -> bool:
    """Whether an output shows a failure by the measure of CoRT's code (arXiv 2506.09820).

    That is an output without content ("", "Done", "[]"), or one that names an error, an exception or a traceback.
    """
    text = output.strip().lower()
    return text in ("", "done", "[]") or any(word in text for word in ("error", "exception", "traceback"))
