"""Ratings of a question's difficulty by a model: read, or a failure; never a silent 0."""

import pytest

from rewards import DifficultyJudge, Failure
from rewards.difficulty import LEVELS
from tests.rewards.test_judge_limits import answering, speaking
from tests.rewards.test_rewards import batch_of

ROWS = [{"prompt": "?", "question": "What is 1+1?", "choices": ["2", "3"]}]


@pytest.mark.parametrize(
    ("scale", "text", "rating"),
    [
        ("number", "It takes no more than counting. [[0.1]]", 0.1),
        ("number", "[[0.9]] at first sight, but [[ 0.25 ]].", 0.25),
        ("number", "[[1]]", 1.0),
        ("education", "One needs a course. [[Undergraduate]]", 0.3),
        *(("education", f"[[{level}]]", value) for level, value in LEVELS.items()),
        ("number", "0.4", None),
        ("number", "[[easy]]", None),
        ("number", "[[1.5]]", None),
        ("number", "[[nan]]", None),
        ("number", "[[-0.1]]", None),
        ("number", None, None),
        ("number", ["[[0.4]]"], None),
        ("education", "[[college]]", None),
        ("education", "[[0.4]]", None),
    ],
)
def test_the_last_rating_in_brackets_counts(scale, text, rating):
    value = DifficultyJudge("http://x", scale=scale).rating(text)
    assert isinstance(value, Failure) if rating is None else value == rating


def test_the_endpoint_sees_the_question_with_its_options_and_not_the_answer(monkeypatch):
    asked = []
    send = DifficultyJudge.replies

    def recorded(self, payload, key, read):
        asked.extend(payload["prompts"])
        return send(self, payload, key, read)

    monkeypatch.setattr(DifficultyJudge, "replies", recorded)
    batch = batch_of(["secret one", "secret two"], ROWS)
    with speaking(answering(b'{"texts": ["[[0.3]]", "no idea"]}')) as (url, _):
        values = DifficultyJudge(url, timeout_s=5, retries=0)(batch)
    assert values[0] == pytest.approx(0.3) and values[1].isnan()
    assert batch.failures["difficulty_judge"].tolist() == [0, 1]
    assert len(asked) == 2 and "What is 1+1?" in asked[0] and "- 3" in asked[0] and "secret" not in asked[0]
