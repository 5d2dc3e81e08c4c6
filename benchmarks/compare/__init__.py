"""All methods on one task, from one start, on the same prompts and for the same number of generated tokens; see `python -m benchmarks.compare --help`.

These files stand above main.py, which they run; nothing else imports them.
"""
