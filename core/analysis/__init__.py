"""Results → estimates with intervals: associations, comparisons, dose–response, step model, and
their sentences."""
