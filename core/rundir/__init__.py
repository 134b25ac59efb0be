"""The run directory: its journal, its results, what ran, and which part of it is looked at."""
