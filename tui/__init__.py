"""The terminal UI: draws Snapshots of `core.experiment.state`, sends commands. `core` never imports
it."""
