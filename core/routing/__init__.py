"""Gate logs → expert loads, imbalance, placements."""
