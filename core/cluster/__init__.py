"""Tasks of a sweep on a cluster, which Slurm or Ray places; each is a gatescope of its own."""
