"""The command line: parsing, messages, the plan of a run, checkpoints to resume from, inspection of completions."""
