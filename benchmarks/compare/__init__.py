"""Comparison of all methods on one task, from one initial policy, with the same prompts and number of generated tokens.

See `python -m benchmarks.compare --help`. These files run main.py; nothing else imports them.
"""
