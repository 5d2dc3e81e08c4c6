"""What the methods are made of: the on-policy loop, its update, evaluation and telemetry."""
