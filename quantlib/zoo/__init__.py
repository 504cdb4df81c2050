"""The lesson models and texts, and models of the hub by name: fetched once, checked, read. Start from zoo.py."""

from quantlib.names import offered

__getattr__, __dir__, __all__ = offered(__name__, {"zoo": "load_lesson_model load_model load_text"})
