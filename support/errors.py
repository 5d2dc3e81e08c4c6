"""The one exception for mistakes that the user can mend."""


class ConfigError(Exception):
    """The user's input is wrong.

    The message is one paragraph that names the thing, says where it came from and what to do about it.
    `main.py` prints it without a traceback. Not a ValueError: the command line's parser takes those for a wrong type, tries the next one and
    buries the message.
    """
