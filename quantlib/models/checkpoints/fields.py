"""Reading settings out of JSON that a stranger wrote. Start from :class:`Fields`."""

from __future__ import annotations

from collections.abc import Mapping

MISSING = object()


class Fields:
    """The keys of a JSON object, each asked for with the type it must have; where it is not, a sentence says so."""

    def __init__(self, values: object, where: str):
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} must be a JSON object, got {values!r:.60}")
        self.values, self.where = values, where

    def whole(self, key: str, default: object = MISSING) -> int:
        """A whole number."""
        return self._typed(key, default, int, "a whole number")

    def truth(self, key: str, default: object = MISSING) -> bool:
        """true or false."""
        return self._typed(key, default, bool, "true or false")

    def text(self, key: str, default: object = MISSING) -> str:
        """A string."""
        return self._typed(key, default, str, "a string")

    def number(self, key: str, default: object = MISSING) -> float:
        """A number that is not negative."""
        value = self._typed(key, default, (int, float), "a number")
        if not value >= 0:
            raise ValueError(f"{self.where}: {key} must not be negative, got {value!r}")
        return float(value)

    def names(self, key: str) -> tuple[str, ...]:
        """A list of strings, or nothing."""
        value = self._typed(key, None, list, "a list of names") or []
        if not all(isinstance(each, str) for each in value):
            raise ValueError(f"{self.where}: {key} must be a list of names, got {value!r:.60}")
        return tuple(value)

    def inner(self, key: str) -> Fields:
        """An object inside."""
        return Fields(self.values.get(key), f"{self.where}: {key}")

    def must_be(self, key: str, *allowed: object, why: str) -> None:
        """Raises ValueError, with why, unless the value is absent, null or one of these."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise ValueError(f"{self.where}: {key}={value!r:.60} is not read here: {why}")

    def _typed(self, key: str, default: object, kind: type | tuple[type, ...], said: str):
        value = self.values.get(key, MISSING)
        if value is MISSING or (value is None and default is not MISSING):
            if default is MISSING:
                raise ValueError(f"{self.where} lacks {key}, {said}")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.where}: {key} must be {said}, got {value!r:.60}")
        return value
