"""Servers: the command that starts one, and the process tree that is kept and ended."""
