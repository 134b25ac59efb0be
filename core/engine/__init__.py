"""The experiment while it runs: the queue, the servers, one run's measurement."""
