"""Records, and on request forces, what the routers of a vLLM server choose.

Runs inside the serving process: it may import the standard library, NumPy, PyTorch and vLLM, and
nothing of `core`. vLLM loads `plugin`, which does nothing unless GATESCOPE_GATE_LOGS names a
folder.
"""
