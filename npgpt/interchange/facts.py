"""A table of facts about a model, somebody else's config.json or GGUF entries, asked with care."""

from npgpt.errors import UserError


class Facts:
    """A dict whose values are asked for by kind, and whose errors name the file.

    Args:    table, a dict; where, the file, for errors.
    """

    def __init__(self, table, where):
        self.table, self.where = table, where

    def whole(self, key, default=None):
        """A whole number of at least 0; default if it is absent, an error if that is None."""
        return self._ask(key, default, lambda v: type(v) is int and v >= 0, "a whole number")

    def number(self, key, default=None):
        """A finite number, as a float."""

        def good(value):
            return type(value) in (int, float) and abs(value) < 1e30

        return float(self._ask(key, default, good, "a number"))

    def flag(self, key, default):
        """True or False."""
        return self._ask(key, default, lambda v: type(v) is bool, "true or false")

    def text(self, key, default=None):
        """A text."""
        return self._ask(key, default, lambda v: isinstance(v, str), "a text")

    def table_of(self, key):
        """A table, as Facts of its own; empty if it is absent."""
        return Facts(self._ask(key, {}, lambda v: isinstance(v, dict), "a table"), self.where)

    def must_be(self, key, *values):
        """Raise UserError unless the value is absent or one of these: others mean what we lack."""
        value = self.table.get(key)
        simple = isinstance(value, str | int | float)  # an array equals nothing, element by element
        if value is not None and not (simple and value in values):
            raise UserError(
                f"{self.where}: {key} is {repr(value)[:60]}, which is not supported; "
                f"npgpt knows {' and '.join(map(repr, values))}"
            )

    def _ask(self, key, default, good, kind):
        value = self.table.get(key)
        if value is None:
            if default is None:
                raise UserError(f"{self.where} does not say {key}: it is incomplete")
            return default
        if not good(value):
            raise UserError(f"{self.where}: {key} is {repr(value)[:60]}, and must be {kind}")
        return value
