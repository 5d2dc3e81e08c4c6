"""A Python interpreter in the sandbox, whose variables persist over the blocks of one completion."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from environments.tools import Tool, ToolError
from rewards.sandbox import Limits, SandboxError, run
from support.errors import ConfigError

#: runs the earlier blocks without their output, then the last one, and prints the value of a last expression
PROGRAM = """
import ast, contextlib, io
names = {{"__name__": "__main__"}}
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    for block in {earlier!r}:
        try:
            exec(compile(block, "<earlier block>", "exec"), names)
        except BaseException:
            pass
tree = ast.parse({block!r}, "<block>")
last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
exec(compile(tree, "<block>", "exec"), names)
if last is not None:
    value = eval(compile(ast.Expression(last.value), "<block>", "eval"), names)
    if value is not None:
        print(repr(value))
"""


class PythonTool(Tool):
    """Runs blocks of Python in `rewards.sandbox`: without network, files or privileges, and with limits.

    A block finds the variables of the earlier blocks of its completion, as in a notebook: those are run again before
    it, without their output. A block that failed contributes its imports only. The value of a last expression is
    printed. The standard input is empty.

    Args:
        limits: of a block together with the blocks before it.
        name: that calls give.
        allow_weaker: accept weaker protections, see docs/sandbox.md.
    """

    def __init__(self, limits: Limits | None = None, name: str = "python", allow_weaker: bool = False) -> None:
        if not name.isidentifier():
            raise ConfigError(f"PythonTool: name is {name!r}; give a name of letters, digits and underscores.")
        self.limits, self.name, self.allow_weaker = limits or Limits(), name, allow_weaker

    def session(self) -> Callable[..., Any]:
        return _Session(self)

    def schema(self) -> dict[str, Any]:
        code = {"type": "string", "description": "The code. What it prints is returned."}
        parameters = {"type": "object", "properties": {"code": code}, "required": ["code"]}
        description = "Runs Python code. Variables of earlier calls are kept."
        return {
            "type": "function",
            "function": {"name": self.name, "description": description, "parameters": parameters},
        }


@dataclass
class _Session:
    """The interpreter of one completion; `blocks` are run again before each call."""

    tool: PythonTool
    blocks: list[str] = field(default_factory=list)

    def __call__(self, code: str) -> str:
        code = str(code)
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ToolError(f"{type(error).__name__}: {error}") from error
        program = PROGRAM.format(earlier=self.blocks, block=code)
        try:
            result = run(program, limits=self.tool.limits, allow_weaker=self.tool.allow_weaker)
        except SandboxError as error:
            raise ToolError("the interpreter is not available") from error
        if result.status == "ok":
            self.blocks.append(code)
            return result.stdout.rstrip("\n")
        self.blocks += _imports(code)
        shown = result.stdout.rstrip("\n")
        if result.status == "error":
            # The last line of a traceback; frames would name the sandbox's own.
            problem = (result.stderr.strip().splitlines() or ["the program ended early"])[-1]
        else:
            limits = self.tool.limits
            problem = {
                "timeout": f"the block took longer than {limits.wall_s:g} seconds",
                "memory": f"the block needed more than {limits.memory_mb} MB",
                "output": f"the block printed more than {limits.output_kb} KB",
            }[result.status]
        raise ToolError(f"{shown}\n{problem}" if shown else problem, timeout=result.status == "timeout")


def _imports(code: str) -> list[str]:
    """The import statements at the top level of a block, as blocks of their own."""
    return [ast.unparse(node) for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
