"""One machine's way of the pixels: decoding processes, shared memory, the engine's lanes, rows."""
