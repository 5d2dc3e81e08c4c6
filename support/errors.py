"""The exception for mistakes that the user can correct."""


class ConfigError(Exception):
    """An error in the user's input.

    The message is one paragraph of at most three sentences: what is wrong (the value and its place), what is allowed,
    and what to change, the key or command last. `main.py` prints it without a traceback. It is not a ValueError: the
    command line's parser takes those for a wrong type, tries the next one and buries the message.

    Control characters are shown by their code: what a message quotes may come from elsewhere, and a terminal obeys
    escape sequences.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def printable(text: str) -> str:
    """The text with control characters, other than line breaks and tabs, as \\x1b."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
