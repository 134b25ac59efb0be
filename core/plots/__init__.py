"""Figures as data, and the two ways to draw them: text for a terminal, PNG for print."""
