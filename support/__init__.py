"""The ground floor: errors, seeds and files. Everything may import it; it imports nothing of the project."""

from support import moved

moved.register()
