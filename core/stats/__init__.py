"""Statistics that know nothing of gatescope: bootstrap, estimates, rank correlation, paired
comparison."""
