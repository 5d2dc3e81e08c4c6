"""C programs of synthetic authors, who solve the same tasks in styles of their own.

An author is a probability for every habit: naming, braces, indentation, comments, loops, increments and others. Each
program draws its habits, so one program is weak evidence and the whole of its habits decides. For every task an author
also has favourite spellings of the variables, which say nothing about other tasks. Two authors are similar: they
differ in a few habits only.
"""

import random
import re
from dataclasses import dataclass, field

from datamodules.code_tasks import SPELLINGS, TASKS
from datamodules.rows import Row
from support.seeding import derive_seed

#: habit -> its variants
HABITS: dict[str, tuple[str, ...]] = {
    "naming": ("snake", "camel", "joined"),
    "braces": ("same line", "own line"),
    "indent": ("  ", "    ", "\t"),
    "comments": ("none", "line", "block", "step"),
    "banner": ("none", "line", "block"),
    "loop": ("for", "while"),
    "increment": ("i++", "++i", "i += 1"),
    "spacing": ("a + b", "a+b"),
    "size": ("const", "define", "sizeof"),
    "end": ("return 0", "EXIT_SUCCESS", "return (0)"),
    "main": ("int main(void)", "int main()"),
}


#: habit -> probability of an author's usual variant; layout is kept more faithfully than words are
FAITH = {"braces": 0.95, "indent": 0.95, "increment": 0.95, "spacing": 0.95, "comments": 0.85}
OTHER_FAITH = 0.75


@dataclass(frozen=True)
class Author:
    """A synthetic author.

    Fields:
        usual: the usual variant of every habit.
        weak: probability of the usual variant of habits that this author keeps less faithfully.
    """

    usual: dict[str, str]
    weak: dict[str, float] = field(default_factory=dict)


#: alder and birch are the similar pair
AUTHORS = {
    "alder": Author(
        {"naming": "snake", "braces": "same line", "indent": "    ", "comments": "line", "banner": "none",
         "loop": "for", "increment": "i++", "spacing": "a + b", "size": "const", "end": "return 0",
         "main": "int main(void)"},
    ),
    "birch": Author(
        {"naming": "snake", "braces": "same line", "indent": "  ", "comments": "step", "banner": "none",
         "loop": "for", "increment": "i += 1", "spacing": "a + b", "size": "const", "end": "return 0",
         "main": "int main(void)"},
        weak={"comments": 0.6, "increment": 0.75, "indent": 0.85},
    ),
    "cedar": Author(
        {"naming": "camel", "braces": "own line", "indent": "\t", "comments": "block", "banner": "block",
         "loop": "for", "increment": "i++", "spacing": "a + b", "size": "sizeof", "end": "EXIT_SUCCESS",
         "main": "int main(void)"},
    ),
    "elm": Author(
        {"naming": "joined", "braces": "own line", "indent": "  ", "comments": "block", "banner": "none",
         "loop": "for", "increment": "++i", "spacing": "a+b", "size": "define", "end": "return 0",
         "main": "int main()"},
    ),
    "fir": Author(
        {"naming": "camel", "braces": "same line", "indent": "\t", "comments": "none", "banner": "line",
         "loop": "while", "increment": "i += 1", "spacing": "a+b", "size": "sizeof", "end": "return (0)",
         "main": "int main()"},
    ),
}  # fmt: skip
SIMILAR = ("alder", "birch")
#: probability of an author's favourite spelling of a variable of a task
FAVOURITE = 0.8
_NAME = re.compile(r"\{(\w+)\}")


def programs(size: int, seed: int) -> list[Row]:
    """`size` rows with `text`, `label` and `template`: authors in turn, tasks at random, all programs different."""
    rng = random.Random(derive_seed("authorship", seed))
    rows: list[Row] = []
    seen: set[str] = set()
    names, tasks = list(AUTHORS), sorted(TASKS)
    while len(rows) < size:
        author, task = names[len(rows) % len(names)], rng.choice(tasks)
        text = program(author, task, rng)
        if text not in seen:
            seen.add(text)
            rows.append({"id": str(len(rows)), "text": text, "label": author, "template": task})
    return rows


def program(author: str, task: str, rng: random.Random) -> str:
    """A program of an author for a task of TASKS, with its habits and numbers drawn from `rng`."""
    style = AUTHORS[author]
    habits = {}
    for habit, variants in HABITS.items():
        usual = style.usual[habit]
        probability = style.weak.get(habit, FAITH.get(habit, OTHER_FAITH))
        others = [variant for variant in variants if variant != usual]
        habits[habit] = usual if rng.random() < probability else rng.choice(others)
    return _Writer(author, task, habits, rng).text()


class _Writer:
    """Writes one program."""

    def __init__(self, author: str, task: str, habits: dict[str, str], rng: random.Random) -> None:
        self.author, self.task, self.habits, self.rng = author, task, habits, rng
        self.names: dict[str, str] = {}
        self.lines: list[str] = []
        self.head: list[str] = []
        self.comments = 0
        self.declared: set[str] = set()  # counters of while loops in this block

    def text(self) -> str:
        title = self.task.replace("_", " ")
        banner = {"none": [], "line": [f"// {title}"], "block": ["/*", f" * {title}", " */"]}[self.habits["banner"]]
        includes = ["#include <stdio.h>"]
        if self.habits["end"] == "EXIT_SUCCESS":
            includes.append("#include <stdlib.h>")
        source = [line for line in TASKS[self.task].splitlines() if line]
        self._block(source, 1)
        end = {"return 0": "return 0;", "EXIT_SUCCESS": "return EXIT_SUCCESS;", "return (0)": "return (0);"}
        self._put(1, end[self.habits["end"]])
        body = [*self._open(self.habits["main"]), *self.lines, "}"]
        return "\n".join([*banner, *includes, *self.head, "", *body]) + "\n"

    def _block(self, source: list[str], depth: int) -> None:
        """Write the lines of one block, and the blocks inside it."""
        place = 0
        while place < len(source):
            line, inner = source[place], []
            place += 1
            while place < len(source) and source[place].startswith("  "):
                inner.append(source[place][2:])
                place += 1
            self._line(line, inner, depth)

    def _line(self, line: str, inner: list[str], depth: int) -> None:
        word, _, rest = line.partition(" ")
        if word == "#":
            self._comment(rest, depth)
        elif word == "array":
            self._array(self._name(rest[1:-1]), depth)
        elif word == "number":
            self._put(depth, f"int {self._code(rest)} = {self.rng.randint(5, 24)};")
        elif word == "each":
            name, _, bound = rest.partition(" ")
            self._loop(self._code(name), self._code(bound), inner, depth)
        elif word in ("if", "while"):
            self._nest(f"{word} ({self._code(rest)})", inner, depth)
        elif word == "else":
            self._nest("else", inner, depth)
        elif word == "step":
            self._put(depth, f"{self._step(self._code(rest))};")
        elif word == "show":
            label, _, value = rest.partition(": ")
            self._put(depth, f'printf("{label}: %d\\n", {self._code(value)});')
        else:
            self._put(depth, f"{self._code(line)};")

    def _loop(self, name: str, bound: str, inner: list[str], depth: int) -> None:
        less = self._spaced(f"{name} < {bound}")
        step = self._step(name)
        if self.habits["loop"] == "for":
            self._nest(f"for (int {name} = 0; {less}; {step})", inner, depth)
            return
        self._put(depth, f"{name} = 0;" if name in self.declared else f"int {name} = 0;")
        self.declared.add(name)
        self._nest(f"while ({less})", inner, depth, f"{step};")

    def _nest(self, head: str, inner: list[str], depth: int, last: str = "") -> None:
        """Write a head and its block in braces; `last` is the block's last statement."""
        for line in self._open(head):
            self._put(depth, line)
        before = set(self.declared)
        self._block(inner, depth + 1)
        if last:
            self._put(depth + 1, last)
        self.declared = before
        self._put(depth, "}")

    def _put(self, depth: int, line: str) -> None:
        self.lines.append(self.habits["indent"] * depth + line)

    def _open(self, head: str) -> list[str]:
        return [f"{head} {{"] if self.habits["braces"] == "same line" else [head, "{"]

    def _array(self, name: str, depth: int) -> None:
        count = self.rng.randint(4, 8)
        numbers = ", ".join(str(self.rng.randint(1, 99)) for _ in range(count))
        size = self._name("size")
        if self.habits["size"] == "define":
            self.head.append(f"#define {size} {count}")
        elif self.habits["size"] == "const":
            self._put(depth, f"const int {size} = {count};")
        self._put(depth, f"int {name}[] = {{{numbers}}};")
        if self.habits["size"] == "sizeof":
            self._put(depth, f"int {size} = sizeof({name}) / sizeof({name}[0]);")

    def _comment(self, text: str, depth: int) -> None:
        self.comments += 1
        sentence = text[0].upper() + text[1:]
        shown = {
            "none": "",
            "line": f"// {text}",
            "block": f"/* {sentence}. */",
            "step": f"// Step {self.comments}: {sentence}",
        }[self.habits["comments"]]
        if shown:
            self._put(depth, shown)

    def _step(self, name: str) -> str:
        return {"i++": f"{name}++", "++i": f"++{name}", "i += 1": self._spaced(f"{name} += 1")}[
            self.habits["increment"]
        ]

    def _code(self, text: str) -> str:
        return self._spaced(_NAME.sub(lambda match: self._name(match[1]), text))

    def _spaced(self, text: str) -> str:
        if self.habits["spacing"] == "a+b":
            for operator in ("==", "!=", "<=", "<", ">", "+=", "+", "-", "*", "/", "%", "="):
                text = text.replace(f" {operator} ", operator)
        return text

    def _name(self, name: str) -> str:
        """The spelling of a variable in this program."""
        if name not in self.names:
            spellings = SPELLINGS[name]
            favourite = derive_seed("spelling", self.author, self.task, name) % len(spellings)
            chosen = favourite if self.rng.random() < FAVOURITE else self.rng.randrange(len(spellings))
            first, *others = spellings[chosen].split()
            self.names[name] = {
                "snake": "_".join([first, *others]),
                "camel": "".join([first, *(word.capitalize() for word in others)]),
                "joined": "".join([first, *others]),
            }[self.habits["naming"]]
        return self.names[name]
