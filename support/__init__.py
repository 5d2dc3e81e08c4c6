"""The bottom layer: errors, seeds, files, processes. Every package may import it; it imports nothing of the project."""

from support import moved

moved.register()
