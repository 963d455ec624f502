"""The sections of `scripts/check_gpu.py`: each measures one part of the toolkit on a GPU, in a process of its own."""
