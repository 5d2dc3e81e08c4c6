"""The code that runs inside: a program, or functions that a caller in another process calls.

The launcher imports this module, so it uses the standard library only.
"""

import builtins
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

LONGEST = 4 << 20  # maximum size of a message between a caller and the program, in bytes
OUT_OF_MEMORY = 120


def execute(source: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a program as Python runs a file. Returns its global names; ends the process if the program fails or exits."""
    main = types.ModuleType("__main__")
    main.__dict__.update(names or {})
    for name in ("launcher", "guest", "kernel", "seccomp"):
        sys.modules.pop(name, None)
    sys.modules["__main__"] = main
    sys.argv, sys.path[:] = ["program.py"], [path for path in sys.path if path != os.path.dirname(__file__)]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    try:
        exec(compile(source, "program.py", "exec"), main.__dict__)
    except SystemExit:
        raise
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BaseException as error:
        sys.excepthook(
            type(error), error.with_traceback(error.__traceback__ and error.__traceback__.tb_next), error.__traceback__
        )
        raise SystemExit(1) from None
    return main.__dict__


def packed(value: Any) -> Any:
    """Plain data as JSON that distinguishes tuples, sets, bytes, complex and large numbers.

    Raises:
        TypeError: for other data.
    """
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 53 else {"int": hex(value)}
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
        items = [packed(item) for item in value]
        return items if kind is list else {kind.__name__: items}
    if isinstance(value, dict):
        return {"dict": [[packed(key), packed(item)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"{type(value).__name__} is not plain data")


def unpacked(value: Any) -> Any:
    """The inverse of `packed`."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {unpacked(key): unpacked(item) for key, item in inner}
    if kind in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](unpacked(item) for item in inner)
    readers: dict[str, Callable[[Any], Any]] = {
        "int": lambda v: int(v, 16),
        "bytes": bytes.fromhex,
        "complex": lambda v: complex(*v),
    }
    return readers[kind](inner)


def serve(source: str, requests: int, replies: int) -> None:
    """Run a program, then call its functions on request: one request or reply per line."""
    try:
        names = execute(source)
    except SystemExit:
        os._exit(1)
    with open(requests, "rb") as asked, open(replies, "wb", buffering=0) as answered:
        for line in asked:
            try:
                name, arguments, keywords = unpacked(json.loads(line))
                reply = {"value": packed(names[name](*arguments, **keywords))}
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            except BaseException as error:  # also SystemExit of a called function
                reply = {"error": f"{type(error).__name__}: {error}"[:1000]}
            answered.write(json.dumps(reply).encode() + b"\n")


class CallFailed(Exception):
    """A call of the program's function raised an exception, returned anything but plain data, or got no reply."""


def call_through(requests: int, replies: int) -> Callable[..., Any]:
    """call(name, *arguments, **keywords) of a function of the program in the other process."""
    asked, answered = open(requests, "wb", buffering=0), open(replies, "rb")

    def call(name: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            asked.write(json.dumps(packed([name, list(arguments), keywords])).encode() + b"\n")
            reply = json.loads(answered.readline(LONGEST))
            if "value" in reply:
                return unpacked(reply["value"])
            message = str(reply["error"])
        except Exception as error:  # the program wrote something that is not a reply
            message = f"no answer: {type(error).__name__}"
        raise CallFailed(message)

    return call
