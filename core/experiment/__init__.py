"""What an experiment is: its configuration, its plan, its events, the state that they fold to, its
commands."""
