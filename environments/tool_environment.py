"""Tools that the policy calls in the middle of a completion."""

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import TimeoutError
from dataclasses import dataclass, replace
from typing import Any

from environments.call_formats import Call, CallFormat, JSONCalls
from environments.tools import Tool, ToolError, as_text, check_arguments, clipped, is_failure, schemas
from rollouts import Conversation, Environment, Reply
from support.errors import ConfigError
from support.threads import on_thread

#: calls that one turn may hold, and calls of one function that may hang before it is not called any more
PER_TURN, MAX_HANGING = 8, 16
#: calls that have not come back, by function: not among the settings, which are the environment's identity
_HANGING: "weakref.WeakKeyDictionary[ToolEnvironment, Counter[str]]" = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


@dataclass
class CallLimits:
    """Limits of calls.

    Args:
        max_calls: turns of a completion that may end in calls; one more turn follows them.
        timeout_s: seconds that a plain function may take; what it computes longer goes on unread.
        head, tail: characters of an output that are kept, from its beginning and its end.
        max_turn_tokens: maximum number of tokens of a turn; None for no other limit than sampling.max_new_tokens.
        workers: number of completions whose calls run at the same time.
        overlap: decoding steps of other completions during which calls may run.
    """

    max_calls: int = 8
    timeout_s: float = 5.0
    head: int = 400
    tail: int = 400
    max_turn_tokens: int | None = None
    workers: int = 4
    overlap: int = 32

    def __post_init__(self) -> None:
        for name in ("max_calls", "workers", "overlap"):
            if getattr(self, name) < 1:
                raise ConfigError(f"environment.limits.{name} is {getattr(self, name)}; set it to 1 or more.")
        if self.timeout_s <= 0 or self.head < 0 or self.tail < 0:
            raise ConfigError(
                f"environment.limits has timeout_s {self.timeout_s}, head {self.head} and tail {self.tail}; set "
                "timeout_s above 0, head and tail to 0 or more."
            )


class ToolEnvironment(Environment):
    """Runs the calls that a turn ends with and appends their outputs; a turn without calls ends the completion.

    A call that cannot be made, fails or takes too long has the reason as its output. Metrics count calls, and by kind
    those that failed; `failed_outputs` are all that failed by CoRT's measure (`environments.tools.is_failure`).
    `unclosed_calls` are completions that end within a call, `refused_calls` those beyond the limits.

    Args:
        tools: functions with type hints and a docstring that describes the arguments, as TRL's `tools` and chat
            templates take them, or `environments.Tool` for calls that share a state.
        calls: how the model writes calls.
        limits: limits of calls.
        notice: appended to the outputs after which no call is left; "" for none.
        describe: describe the tools in prompts by the chat template's `tools`, if the format of the calls does so.
    """

    metrics = (
        "calls",
        "call_problems",
        "call_errors",
        "call_timeouts",
        "empty_outputs",
        "clipped_outputs",
        "failed_outputs",
        "refused_calls",
        "unclosed_calls",
    )
    waits = True

    def __init__(
        self,
        tools: list[Tool | Callable[..., Any]],
        calls: CallFormat | None = None,
        limits: CallLimits | None = None,
        notice: str = "No more calls are possible. Give the answer now.",
        describe: bool = True,
    ) -> None:
        self.schemas = schemas(tools)
        self.tools = dict(zip(self.schemas, tools, strict=True))
        self.calls, self.limits = calls or JSONCalls(), limits or CallLimits()
        self.notice, self.describe = notice, describe
        self.stop, self.max_turns = self.calls.stop, self.limits.max_calls + 1
        self.max_turn_tokens, self.overlap = self.limits.max_turn_tokens, self.limits.overlap
        self.concurrent = self.limits.workers

    def template_arguments(self) -> dict[str, Any]:
        return {"tools": list(self.schemas.values())} if self.describe and self.calls.in_template else {}

    def reply(self, conversation: Conversation) -> Reply:
        turn = conversation.turns[-1]
        asked = self.calls.calls(conversation)
        if asked is None:
            return Reply(metrics={"unclosed_calls": 1})
        goes_on = turn.finish == "stop" and turn.text.endswith(self.stop)
        if turn.finish == "length" or not (asked or goes_on):
            return Reply(metrics={"refused_calls": len(asked)})
        left = self.max_turns - len(conversation.turns)
        if not left:
            return Reply(metrics={"refused_calls": len(asked)})
        counts = Counter[str]()
        outputs = [self._output(call, conversation, counts) for call in asked[:PER_TURN]]
        counts["refused_calls"] += len(asked[PER_TURN:])
        if left == 1 and self.notice and outputs:
            outputs[-1] = f"{outputs[-1]}\n{self.notice}"
        reply = self.calls.reply(conversation, asked[:PER_TURN], outputs)
        return replace(reply, stops=left > 1, metrics=counts)

    def _output(self, call: Call, conversation: Conversation, counts: Counter[str]) -> str:
        """The text that a call returns, which is never empty."""
        counts["calls"] += 1
        tool = self.tools.get(call.name)
        if call.problem is not None or tool is None:
            counts["call_problems"] += 1
            counts["failed_outputs"] += 1
            problem = call.problem or f"there is no tool {call.name!r}; the tools are {', '.join(self.tools)}"
            return f"error: {clipped(problem, self.limits.head, self.limits.tail)}"
        try:
            text = self._called(call, tool, conversation)
        except ToolError as error:
            counts["call_timeouts" if error.timeout else "call_errors"] += 1
            counts["failed_outputs"] += 1
            text = f"error: {error}"
        else:
            counts["empty_outputs"] += not text.strip()
            counts["failed_outputs"] += is_failure(text)
            text = text if text.strip() else "(no output)"
        text = text.encode("utf-8", "replace").decode()  # lone surrogates have no tokens
        shown = clipped(text, self.limits.head, self.limits.tail)
        counts["clipped_outputs"] += shown != text
        return shown

    def _called(self, call: Call, tool: Any, conversation: Conversation) -> str:
        """The text of a call's result. Raises ToolError for whatever goes wrong in it, ConfigError for settings."""
        if isinstance(tool, Tool):
            sessions = conversation.state.setdefault("sessions", {})
            if call.name not in sessions:
                sessions[call.name] = tool.session()
            check_arguments(sessions[call.name], call.arguments)
            return _outcome(lambda: as_text(sessions[call.name](**call.arguments)))
        check_arguments(tool, call.arguments)
        with _LOCK:
            hanging = _HANGING.setdefault(self, Counter())
            if hanging[call.name] >= MAX_HANGING:
                raise ToolError(f"{call.name} does not answer", timeout=True)
            hanging[call.name] += 1

        def work() -> str:
            try:
                return _outcome(lambda: as_text(tool(**call.arguments)))
            finally:
                with _LOCK:
                    hanging[call.name] -= 1

        future = on_thread(work)
        try:
            return future.result(self.limits.timeout_s)
        except TimeoutError as error:
            if future.done():
                return future.result()  # it came at the last moment
            raise ToolError(f"{call.name} took longer than {self.limits.timeout_s:g} seconds", timeout=True) from error


def _outcome(function: Callable[[], str]) -> str:
    """The text of a tool's result. Raises ToolError for any exception but those about settings."""
    try:
        return function()
    except (ToolError, ConfigError):
        raise
    except BaseException as error:  # a tool may also raise SystemExit
        try:
            message = str(error)
        except Exception:
            message = "an error without a message"
        raise ToolError(f"{type(error).__name__}: {message}") from error
