"""Formats of calls: the ways in which a model calls tools, and in which it reads their outputs."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rollouts import Conversation, Reply
from support.errors import ConfigError


@dataclass(frozen=True)
class Call:
    """A call that a turn ends with.

    Args:
        name: of the tool. arguments: by name.
        problem: why it cannot be made, if it cannot; the model reads it in place of the output.
    """

    name: str
    arguments: dict[str, Any]
    problem: str | None = None


class CallFormat(ABC):
    """A way of writing calls and outputs."""

    #: texts that end a turn
    stop: tuple[str, ...] = ()
    #: whether prompts describe the tools by the chat template's `tools`
    in_template = True

    @abstractmethod
    def calls(self, conversation: Conversation) -> list[Call] | None:
        """The calls that the last turn ends with; None if a call was begun and not finished."""

    @abstractmethod
    def reply(self, conversation: Conversation, calls: Sequence[Call], outputs: Sequence[str]) -> Reply:
        """The reply with the output of each call; without calls, the reply that lets the model go on."""


class JSONCalls(CallFormat):
    """Calls as JSON between two marks, as Qwen's and Hermes' chat templates ask for; outputs are `tool` messages.

        <tool_call>{"name": "search", "arguments": {"query": "capital of Peru"}}</tool_call>

    A turn may hold several calls.

    Args:
        opening, closing: the marks.
        stop_at_call: end the turn at the first closing mark, for a model that would go on and invent the output; by
            default the model's end token ends it.
    """

    def __init__(self, opening: str = "<tool_call>", closing: str = "</tool_call>", stop_at_call: bool = False) -> None:
        if not opening or not closing:
            raise ConfigError(f"JSONCalls: opening is {opening!r} and closing {closing!r}; neither may be empty.")
        self.opening, self.closing = opening, closing
        self.stop = (closing,) if stop_at_call else ()

    def calls(self, conversation: Conversation) -> list[Call] | None:
        text = conversation.turns[-1].text
        first, *others = text.split(self.opening)
        bodies = [other.partition(self.closing) for other in others]
        if bodies and not bodies[-1][1]:
            return None
        return [_json_call(body) for body, closing, _ in bodies if closing]

    def reply(self, conversation: Conversation, calls: Sequence[Call], outputs: Sequence[str]) -> Reply:
        if not calls:
            return Reply(text="")
        messages = [
            {"role": "tool", "name": call.name, "content": text} for call, text in zip(calls, outputs, strict=True)
        ]
        return Reply(messages=messages)


def _json_call(body: str) -> Call:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError) as error:
        return Call("", {}, f"the call is not valid JSON ({error})")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return Call("", {}, 'a call is a JSON object with a "name" and "arguments"')
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # JSON within JSON, as OpenAI's messages have it
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        return Call(call["name"], {}, 'the "arguments" are not a JSON object')
    return Call(call["name"], arguments)


class CodeFence(CallFormat):
    """Code blocks within a text, as in CoRT (arXiv 2506.09820): a block that ends the turn is run, and an output block
    follows it in the same message, so that the model goes on where it was.

    Only the policy's own text is searched for blocks. An output block that the model writes itself is text like any
    other.

    Args:
        languages: names behind the opening fence of blocks that are run.
        output: name behind the opening fence of outputs.
        tool, argument: name of the tool that runs a block, and of its argument.
        cue: text behind every output, such as a hint to believe it (hint-engineering, `assets/rejection_sample.py`).
    """

    stop = ("\n```\n",)
    in_template = False

    def __init__(
        self,
        languages: Sequence[str] = ("python", "py"),
        output: str = "output",
        tool: str = "python",
        argument: str = "code",
        cue: str = "",
    ) -> None:
        self.languages, self.output, self.tool, self.argument = tuple(languages), output, tool, argument
        self.cue = cue

    def calls(self, conversation: Conversation) -> list[Call] | None:
        language, lines, closed = last_block("".join(turn.text for turn in conversation.turns))
        if language not in self.languages:
            return []
        if not closed:
            return None
        return [Call(self.tool, {self.argument: "\n".join(lines)})]

    def reply(self, conversation: Conversation, calls: Sequence[Call], outputs: Sequence[str]) -> Reply:
        if not calls:
            return Reply(text="")
        begin = "" if conversation.turns[-1].text.endswith("\n") else "\n"
        return Reply(text=begin + "".join(f"```{self.output}\n{text}\n```\n{self.cue}" for text in outputs))


def last_block(text: str) -> tuple[str | None, list[str], bool]:
    """(language, lines, whether it is closed) of the code block that a text ends with or in; language None if none."""
    language: str | None = None
    lines: list[str] = []
    is_open = False
    for line in text.removesuffix("\n").split("\n"):
        fence = _fence(line)
        if is_open and fence == "":
            is_open = False
        elif is_open:
            lines.append(line)
        elif fence is not None:
            language, lines, is_open = fence, [], True
        else:
            language = None
    return language, lines, not is_open


def _fence(line: str) -> str | None:
    """The name behind a fence, "" for one without a name; None for a line that is not a fence."""
    text = line.strip()
    name = text.removeprefix("```").strip()
    is_fence = text.startswith("```") and (not name or name.replace("_", "").isalnum())
    return name if is_fence else None
