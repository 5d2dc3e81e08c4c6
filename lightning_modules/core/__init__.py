"""The common parts of the methods: the on-policy loop, its update, evaluation and telemetry."""
