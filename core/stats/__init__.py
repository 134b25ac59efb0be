"""Statistics, independent of the rest of gatescope: bootstrap, estimates, rank correlation, paired
comparison."""
