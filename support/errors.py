"""The exception for mistakes that the user can correct."""


class ConfigError(Exception):
    """An error in the user's input.

    The message is one paragraph of at most three sentences: what is wrong (the value and its place), what is allowed,
    and what to change, the key or command last. `main.py` prints it without a traceback. It is not a ValueError: the
    command line's parser takes those for a wrong type, tries the next one and buries the message.
    """
