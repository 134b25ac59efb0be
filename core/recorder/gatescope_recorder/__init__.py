"""Runs inside the serving process: the standard library, NumPy and PyTorch only, and nothing of
`core`.

`plugin` is what vLLM loads. It does nothing unless GATESCOPE_GATE_LOGS names a folder.
"""
