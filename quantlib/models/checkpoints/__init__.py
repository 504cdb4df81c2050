"""Quantized models on disk, in the formats of other tools. Start from saving.py and loading.py; one file a format."""
