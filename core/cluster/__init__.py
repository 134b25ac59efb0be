"""Tasks of a sweep on a cluster: engines that exist (Slurm, Ray) place them; each is a gatescope."""
