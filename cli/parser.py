"""The argument parser: it reads configurations of earlier versions, and reports a mistake in one paragraph."""

from typing import Any

from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from cli import class_changes, literal_defaults, text_values
from cli.earlier_configurations import brought_up_to_date
from cli.suggestions import explain
from support.errors import ConfigError

class_changes.register()
literal_defaults.register()
text_values.register()


class Parser(LightningArgumentParser):
    """Reports the part of a configuration that is wrong and the nearest right name, where both can be found out."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises ConfigError with one paragraph, or jsonargparse's own error where none can be made."""
        if not self.exit_on_error:  # the parser of a nested class: its message is part of the outer one's
            return super().error(message, ex)
        known = [action.dest for action in self._actions]
        for action in self._actions:
            for parser in getattr(action, "_name_parser_map", {}).values():
                known += [nested.dest for nested in parser._actions]
        paragraph = explain(str(message), known)
        if paragraph:
            raise ConfigError(paragraph)
        return super().error(message, ex)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Parse the text of a configuration, of this version or of an earlier one.

        Raises:
            ConfigError: for a value with a null byte, where a section is looked for as a file.
        """
        try:
            namespace: Namespace = super().parse_string(brought_up_to_date(content), *args, **kwargs)
        except ValueError as error:
            if "null byte" not in str(error):
                raise
            raise ConfigError(
                "a configuration has a null byte (\\0) where it names a section; remove it from the file."
            ) from error
        return namespace


def make_parser(**kwargs: Any) -> Parser:
    """A parser with `--config` and without abbreviated options: `--trainer.max_epoch` is a mistake."""
    parser = Parser(**kwargs)
    parser.allow_abbrev = False
    parser.add_argument(
        "-c",
        "--config",
        action=ActionConfigFile,
        help="configuration file; later files override earlier ones key by key",
    )
    return parser
