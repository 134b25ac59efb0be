"""Runs inside the serving process. Imports the standard library and NumPy only, and nothing of `core`."""
