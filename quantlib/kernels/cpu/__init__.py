"""The products of a CPU, a ladder from naive to this package's own C++. Start from ladder.py."""
