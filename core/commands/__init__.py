"""Commands too long for core/cli.py: each adds its arguments, and imports what it uses when it runs."""
