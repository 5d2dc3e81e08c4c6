"""Sums as a till writes them: a project of its own, with its data, its reward and its callbacks."""
