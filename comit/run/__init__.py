"""The durable side of a run: its work list, its parts, and the place of its results."""
