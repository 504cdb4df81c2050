"""Experiments too slow for a page, and what they gave. Start from records.py."""

from quantlib.names import offered

__getattr__, __dir__, __all__ = offered(
    __name__,
    {
        "experiments": "Experiment experiment load_experiment show_experiment",
        "records": "Record StaleRecord load_record",
    },
)
