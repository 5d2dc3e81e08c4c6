"""Environments: what follows each turn of a completion, such as the output of a tool."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from environments.call_formats import Call, CallFormat, CodeFence, JSONCalls
from environments.python_tool import PythonTool
from environments.thinker import ThinkerDialogue, TurnBudgets, TurnPrompts
from environments.tool_environment import CallLimits, ToolEnvironment
from environments.tools import Tool, ToolError
from rollouts import Conversation, Environment, Reply, Turn

__all__ = [
    "Call",
    "CallFormat",
    "CallLimits",
    "CodeFence",
    "Conversation",
    "Environment",
    "JSONCalls",
    "PythonTool",
    "Reply",
    "ThinkerDialogue",
    "Tool",
    "ToolEnvironment",
    "ToolError",
    "Turn",
    "TurnBudgets",
    "TurnPrompts",
]
