"""Write the training rows of a data module with their answers as demonstrations, for supervised fine-tuning.

python assets/make_demonstrations.py --config configs/assets/families.yaml
"""

import json
import sys
from pathlib import Path

from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from datamodules.prompts import PromptData  # noqa: E402
from support.files import atomic_write_text  # noqa: E402


def main(data: PromptData, out: str, template: str = "{answer}", shares: dict[str, float] | None = None) -> None:
    """One line a row, {"prompt", "response", "task"}.

    Args:
        data: its held-out rows are left out, whatever uses them later must have the same seed.
        out: a .jsonl file. template: of the response.
        shares: task -> part of its rows that is kept; 1 where none is given.
    """
    rows, kept, seen = data.rows("train"), [], {}  # type: ignore[var-annotated]
    for row in rows:
        seen[row["task"]] = seen.get(row["task"], 0) + 1
        share = (shares or {}).get(row["task"], 1.0)
        if int(seen[row["task"]] * share) > int((seen[row["task"]] - 1) * share):
            kept.append({"prompt": row["prompt"], "response": template.format(answer=row["answer"]), "task": row["task"]})
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(Path(out), "".join(json.dumps(row) + "\n" for row in kept))
    print(f"{len(kept)} of {len(rows)} rows of {len(seen)} task(s), written to {out}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
