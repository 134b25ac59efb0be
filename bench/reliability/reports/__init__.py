"""Situations that real users reported, each rebuilt as a small input: does gatescope give what is
expected?

A module of this package holds a list `CASES`; `MODULES` in `all_cases.py` names the modules.
"""
