"""Judgement of answers by computation, in separate processes that are ended if they take too long.

math-verify and the scorers of reasoning-gym pass an answer to sympy or to Python, and `9**9**9` never ends. It runs in
C code, which neither an exception nor a signal handler can interrupt; a process can always be ended. An answer whose
judgement is ended or fails is wrong. Judgements are cached, so the same answer costs its time limit only once.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

#: CPU time per answer
SECONDS = 5.0
#: CPU time per answer by kind of question, where it is another
SECONDS_OF = {"schema": 1.0}
#: elapsed time per answer, which also ends an answer that waits
WALL_SECONDS = 30.0
#: elapsed time for a process to start and import its packages
START_SECONDS = 120.0
#: address space per process, in bytes
MEMORY = 8 << 30
#: number of questions for each additional process
PER_PROCESS = 24
#: number of cached judgements
REMEMBERED = 16384

Question = tuple[str, ...]


class _Process:
    """A process that starts with the first question, and again after it was ended."""

    def __init__(self) -> None:
        self.lock, self.asked = threading.Lock(), 0
        self.child: subprocess.Popen[bytes] | None = None
        self.kinds: set[str] = set()  # kinds whose packages are already imported

    def ask(self, kind: str, *texts: str) -> Any:
        """The judgement; None if it failed or was ended. Raises ImportError if a package is missing."""
        with self.lock:
            if self.child is None or self.child.poll() is not None:
                command = [sys.executable, "-P", __file__]
                self.child = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                self.kinds = set()
            assert self.child.stdin and self.child.stdout
            self.asked += 1
            try:
                self.child.stdin.write(json.dumps([self.asked, kind, *texts]).encode() + b"\n")
                self.child.stdin.flush()
                limit = WALL_SECONDS + (START_SECONDS if kind not in self.kinds else 0.0)
                number, result, missing = json.loads(self._line(limit) or b"[0, null, null]")
            except (BrokenPipeError, ValueError):
                number = 0
            except BaseException:  # a reply that was not read would be taken for the reply to the next question
                self.end()
                raise
            if number != self.asked:
                self.end()
                return None
            self.kinds.add(kind)
        if missing is not None:
            raise ImportError(missing)
        return result

    def _line(self, seconds: float) -> bytes:
        """The next line of the process's output; empty if the process ends or the time is over."""
        assert self.child is not None and self.child.stdout
        place, line, deadline = self.child.stdout.fileno(), b"", time.monotonic() + seconds
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([place], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(place, 1 << 16) if ready else b""
            if not part:
                return b""
            line += part
        return line

    def end(self) -> None:
        """Kill it; the next question starts another."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for stream in (self.child.stdin, self.child.stdout):
                try:
                    if stream:
                        stream.close()
                except OSError:
                    pass  # the last question could not be written
            self.child = None


class Pool:
    """Processes that judge in parallel, each started when there are enough questions for it.

    Args:
        size: maximum number of processes; None means one per CPU, from 2 to 8.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size or max(
            2, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2)
        )
        self.processes: list[_Process] = [_Process() for _ in range(self.size)]
        self.remembered: OrderedDict[Question, Any] = OrderedDict()
        self.lock = threading.Lock()

    def judge(self, questions: Sequence[Question]) -> list[Any]:
        """The judgement of every question, (kind, *texts); None for one that failed or was ended.

        Equal questions are asked once.
        """
        with self.lock:
            open_questions = [question for question in dict.fromkeys(questions) if question not in self.remembered]
            known = {question: self.remembered[question] for question in questions if question in self.remembered}
        if open_questions:
            known |= self._asked(open_questions)
        with self.lock:
            for question in dict.fromkeys(questions):
                self.remembered[question] = known[question]
                self.remembered.move_to_end(question)
            while len(self.remembered) > REMEMBERED:
                self.remembered.popitem(last=False)
        return [known[question] for question in questions]

    def _asked(self, questions: list[Question]) -> dict[Question, Any]:
        count = min(self.size, -(-len(questions) // PER_PROCESS))
        if count == 1:
            return {question: self.processes[0].ask(*question) for question in questions}
        rest, results = iter(questions), {}
        taking = threading.Lock()

        def work(process: _Process) -> None:
            while True:
                with taking:
                    question = next(rest, None)
                if question is None:
                    return
                results[question] = process.ask(*question)

        with ThreadPoolExecutor(count) as threads:
            for done in [threads.submit(work, process) for process in self.processes[:count]]:
                done.result()
        return results


_pool = Pool()


def judged(kind: str, *texts: str) -> Any:
    """The judgement of one question, see `_judge`."""
    return _pool.judge([(kind, *texts)])[0]


def judged_all(questions: Sequence[Question]) -> list[Any]:
    """The judgements of many questions (kind, *texts) in their order, in parallel."""
    return _pool.judge(questions)


# ---- in the processes ------------------------------------------------------------------------------------------------


@cache
def _judge(kind: str) -> Callable[..., Any]:
    """The function that judges a kind of question.

    math(gold, completion), same(gold, answer) and readable(text) use rewards/math_compare.py; gym(answer, entry) uses
    reasoning-gym; schema(schema, text) and schema_fault(schema) use rewards/schemas.py.
    """
    if kind == "gym":
        import reasoning_gym

        def score(answer: str, entry: str) -> float:
            """Score an entry with tuples for boards, as before it was written as JSON: a list would equal no tuple."""
            data = json.loads(entry)
            if isinstance(board := data["metadata"].get("output"), list):
                data["metadata"]["output"] = tuple(tuple(row) if isinstance(row, list) else row for row in board)
            return float(
                reasoning_gym.get_score_answer_fn(data["metadata"]["source_dataset"])(answer=answer, entry=data)
            )

        return score
    if kind in ("schema", "schema_fault"):
        import jsonschema  # noqa: F401  # as math_verify below

        from rewards.schemas import fits, schema_fault

        return fits if kind == "schema" else schema_fault
    import math_verify  # noqa: F401  # a missing package is reported differently from an answer that fails

    from rewards.math_algebra import readable_by_algebra, sympy_algebra
    from rewards.math_compare import grade, same

    if kind == "readable":
        return readable_by_algebra
    algebra = sympy_algebra()
    return lambda gold, text: (grade if kind == "math" else same)(gold, text, algebra)


def _alone() -> None:
    """Make `rewards.math_compare` importable without the package `rewards`, whose imports take seconds."""
    import types

    package = types.ModuleType("rewards")
    package.__path__ = [str(Path(__file__).resolve().parent)]
    sys.modules["rewards"] = package


def _serve() -> None:
    import resource

    _alone()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not be read as replies
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        number, kind, *texts = json.loads(line)
        result = missing = None
        try:
            judge = _judge(kind)
            signal.setitimer(
                signal.ITIMER_PROF, SECONDS_OF.get(kind, SECONDS)
            )  # the signal has no handler, so it ends the process
            result = judge(*texts)
        except ImportError as error:
            missing = str(error)
        except Exception:
            pass
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps([number, result, missing]) + "\n")
        replies.flush()


if __name__ == "__main__":
    _serve()
