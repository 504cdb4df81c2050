"""What a grid is, how a matrix is rounded to it, and how codes become bytes. Start from quantize.py."""
