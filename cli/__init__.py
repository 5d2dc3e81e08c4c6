"""The command line: parsing, messages, the plan of a run, checkpoints to resume from, inspection of completions."""

from lightning_posttrain import check_siblings

check_siblings(__name__)
