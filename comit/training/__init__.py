"""Training COMiT-Net from a manifest (needs the extra ``train``).

:mod:`.data` reads, :mod:`.augment` varies, :mod:`.loop` trains, :mod:`.metrics` measures.
"""
