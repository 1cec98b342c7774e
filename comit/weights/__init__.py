"""The bundled model: ``model.onnx`` and its ``card.json``."""
