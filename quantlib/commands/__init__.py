"""What `python -m quantlib` does, a file a command."""
