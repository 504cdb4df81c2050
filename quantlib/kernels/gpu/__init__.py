"""The products of a CUDA device, a ladder from naive to Triton. Start from ladder.py."""
