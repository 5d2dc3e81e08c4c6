"""Rewards that differ between the completions of an untrained model, so that there is something to learn."""


def digits(completions: list[str]) -> list[float]:
    """Fraction of digits among the characters of each completion."""
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]


def brevity(completions: list[str]) -> list[float]:
    """Minus the number of characters of each completion."""
    return [-float(len(text)) for text in completions]


def odd(completions: list[str]) -> list[float]:
    """1 for a completion with an odd number of characters, else 0: a cost of about one half."""
    return [float(len(text) % 2) for text in completions]


def even(completions: list[str]) -> list[float]:
    """1 minus `odd`."""
    return [1.0 - value for value in odd(completions)]
