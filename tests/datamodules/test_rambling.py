from collections import Counter

import pytest

from datamodules import Demonstrations
from datamodules.rambling import AGAIN, MOST, PHRASE, rambling_demonstrations
from support.errors import ConfigError


def test_rambling_leaves_the_answer_alone_and_tells_nothing_about_it():
    rows = rambling_demonstrations(4000, seed=3)
    assert rows == rambling_demonstrations(4000, seed=3) != rambling_demonstrations(4000, seed=4)
    times, right = Counter(), Counter()
    for row in rows:
        steps, closing, answer = row["response"].partition("</think>")
        if not (steps and closing):
            continue
        said = steps.count(PHRASE)
        columns = [part.partition("=")[2] for part in steps[: len(steps) - said * len(PHRASE)].split(", ")]
        assert len(columns) == row["level"] and steps.endswith(PHRASE * said)
        assert answer == (str(int(columns[-1]) // 10) if len(columns[-1]) == 2 else "") + "".join(c[-1] for c in reversed(columns))
        times[said] += 1
        right[said] += answer == row["answer"]
    shares = [times[n] / sum(times.values()) for n in range(MOST + 1)]
    assert sum(times.values()) > 3500 and max(times) == MOST
    assert shares == pytest.approx([1 - AGAIN, 0.1875, 0.1406, 0.1055, 0.0791, 0.2373], abs=0.03)
    assert max(right[n] / times[n] for n in times) - min(right[n] / times[n] for n in times) < 0.12


def test_the_data_module_knows_them():
    data = Demonstrations("rambling", train_size=16, val_size=4, seed=1)
    data.setup("fit")
    assert len(data.train_data) == 16 and len(data.val_data) == 4
    with pytest.raises(ConfigError, match="val_size is -1"):
        Demonstrations("rambling", val_size=-1)
