"""Own reward: a plain function in TRL's signature, lists in and one number a completion out."""


def close(completions, answer, **columns):
    """1 for the right number, less the further away, 0 for no number."""
    scores = []
    for text, wanted in zip(completions, answer, strict=True):
        found = text.rpartition("</think>")[2].strip()
        scores.append(1 / (1 + abs(int(found) - int(wanted))) if found.isdigit() else 0.0)
    return scores
