"""Folders that stand for the data sets of the hub, with their columns."""

import json
from pathlib import Path
from typing import Any

TURN = "\n\nHuman: {n}?\n\nAssistant: "
#: a row in the columns of each data set
HUB = {
    "openai/gsm8k": {"question": "What is {n} + {n}?", "answer": "{n} + {n} = <<{n}+{n}=0>>0\n#### 1,{n}00"},
    "ChilleD/SVAMP": {"Body": "Tom has {n} apples.", "Question": "How many has he?", "Answer": "{n}.0", "Type": "x"},
    "DigitalLearningGmbH/MATH-lighteval": {
        "problem": "Find ${n}$.",
        "solution": "It is $\\boxed{{\\frac{{{n}}}{{3}}}}$.",
    },
    "HuggingFaceH4/MATH-500": {"problem": "Find ${n}$.", "answer": "\\frac{{{n}}}{{3}}"},
    "HuggingFaceH4/aime_2024": {"problem": "Find ${n}$.", "answer": "{n}"},
    "agentica-org/DeepScaleR-Preview-Dataset": {"problem": "Find ${n}$.", "answer": "{n}", "solution": "It is {n}."},
    "cais/mmlu": {"subject": "law", "question": "Is {n} even?", "choices": ["{n}", "no"], "answer": "A"},
    "Anthropic/hh-rlhf": {"chosen": TURN + "yes", "rejected": TURN + "no"},
    "PKU-Alignment/PKU-SafeRLHF": {
        "prompt": "How do I {n}?",
        "response_0": "Ask {n}.",
        "response_1": "No.",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "better_response_id": 0,
        "safer_response_id": 1,
    },
}
#: numbers in the rows where they are not 0 to 399; the two splits of PKU-SafeRLHF share prompts, and repeat them
NUMBERS = {
    ("PKU-Alignment/PKU-SafeRLHF", "train"): [n // 2 for n in range(300)],
    ("PKU-Alignment/PKU-SafeRLHF", "test"): [n // 2 for n in range(200, 3000)],
}


def _filled(cell: Any, n: int) -> Any:
    """A cell with the row's number in its texts."""
    if isinstance(cell, list):
        return [_filled(part, n) for part in cell]
    return cell.format(n=n) if isinstance(cell, str) else cell


def write_hub(folder: Path, longest: int = 0) -> None:
    """Write the data sets under their names.

    Args:
        longest: number of digits of the numbers in the first 20 rows.
    """
    for source, row in HUB.items():
        (folder / source).mkdir(parents=True)
        for split in ("train", "test"):
            numbers = list(NUMBERS.get((source, split), range(400)))
            if longest:
                numbers[:20] = [10 ** (longest - 1) + n + 20 * (split == "test") for n in range(20)]
            rows = [{name: _filled(cell, n) for name, cell in row.items()} for n in numbers]
            (folder / source / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
