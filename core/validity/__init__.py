"""Validity: rules that name what is wrong with a run directory, or with gate logs, before they are
believed."""
