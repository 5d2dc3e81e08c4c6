"""Judges answers by computing what they say, in a process of its own that the kernel ends after some seconds of CPU time.

math-verify and several scorers of reasoning-gym hand an answer to sympy, and `9**9**9` never ends. That happens inside C code, where neither an exception nor a
signal handler gets through; a process can always be ended. An answer whose judgement is ended, or fails, is a wrong answer.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

#: of CPU time, for one answer
SECONDS = 5.0
#: of address space, for the process
MEMORY = 8 << 30


class _Process:
    """Started when it is first asked, and again after it was ended."""

    def __init__(self) -> None:
        self.lock, self.asked = threading.Lock(), 0
        self.child: subprocess.Popen[str] | None = None

    def ask(self, kind: str, *texts: str) -> Any:
        """The judgement; None if it failed or was ended. Raises ImportError if a package is missing."""
        with self.lock:
            if self.child is None or self.child.poll() is not None:
                command = [sys.executable, "-P", __file__]
                self.child = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            assert self.child.stdin and self.child.stdout
            self.asked += 1
            try:
                self.child.stdin.write(json.dumps([self.asked, kind, *texts]) + "\n")
                self.child.stdin.flush()
                number, found, missing = json.loads(self.child.stdout.readline() or "[0, null, null]")
            except BrokenPipeError:
                number = 0
            except BaseException:  # an answer that nobody fetched would be taken for the next one's
                self._end()
                raise
            if number != self.asked:
                self._end()
                return None
        if missing is not None:
            raise ImportError(missing)
        return found

    def _end(self) -> None:
        assert self.child is not None
        self.child.kill()
        self.child.wait()
        self.child = None


_process = _Process()


@lru_cache(maxsize=4096)
def judged(kind: str, *texts: str) -> Any:
    """The judgement of a kind, see `_judge`."""
    return _process.ask(kind, *texts)


@cache
def _judge(kind: str) -> Callable[..., Any]:
    """equal(wanted, given) and readable(text) by math-verify; gym(answer, entry) by reasoning-gym."""
    if kind == "gym":
        import reasoning_gym

        def score(answer: str, entry: str) -> float:
            data = json.loads(entry)
            return float(
                reasoning_gym.get_score_answer_fn(data["metadata"]["source_dataset"])(answer=answer, entry=data)
            )

        return score
    from math_verify import parse, verify

    # Their time limits are signals, which do not interrupt C code.
    if kind == "readable":
        return lambda text: bool(parse(text, parsing_timeout=None))
    return lambda wanted, given: bool(
        verify(parse(wanted, parsing_timeout=None), parse(given, parsing_timeout=None), timeout_seconds=None)
    )


def _serve() -> None:
    import resource

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        number, kind, *texts = json.loads(line)
        found = missing = None
        try:
            judge = _judge(kind)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # nobody handles its signal, so it ends the process
            found = judge(*texts)
        except ImportError as error:
            missing = str(error)
        except Exception:
            pass
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps([number, found, missing]) + "\n")
        replies.flush()


if __name__ == "__main__":
    _serve()
