"""Engines: one contract (:mod:`.base`), one module for each backend."""
