"""COMiT-Net in PyTorch (needs the extra ``train``): :mod:`.network` and :mod:`.loss`."""
