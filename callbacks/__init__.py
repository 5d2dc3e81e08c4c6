"""What happens between steps: KL control, tables, checkpoints, exports."""

from callbacks.export import ExportPolicy

__all__ = ["ExportPolicy"]
