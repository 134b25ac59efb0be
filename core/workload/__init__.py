"""Datasets: their formats, the predicted imbalance score, the generator."""
