"""The terminal UI: draws Snapshots of `core.state`, sends commands. `core` never imports it."""
