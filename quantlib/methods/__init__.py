"""The methods: a weight, and often statistics of what it is multiplied by, become a QuantizedTensor.

Pure functions that read like their paper's algorithm box. They see no model; quantlib.models runs them over one.
"""
