"""The project's own reward: a plain function in TRL's signature, lists in and one number per completion out."""


def close(completions, answer, **columns):
    """1 / (1 + distance to the right number), 0 for a completion without a number."""
    scores = []
    for text, expected in zip(completions, answer, strict=True):
        number = text.rpartition("</think>")[2].strip()
        scores.append(1 / (1 + abs(int(number) - int(expected))) if number.isdigit() else 0.0)
    return scores
