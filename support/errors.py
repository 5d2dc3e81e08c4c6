"""The exception for mistakes that the user can correct."""


class ConfigError(Exception):
    """An error in the user's input.

    The message is one paragraph that names the wrong value, says where it came from and what to do about it.
    `main.py` prints it without a traceback. It is not a ValueError: the command line's parser takes a ValueError for a
    wrong type, tries the next type and buries the message.
    """
