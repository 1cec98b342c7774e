"""Training COMiT-Net from a manifest (needs the extra ``train``).

:mod:`.data` reads, :mod:`.augment` varies, :mod:`.loop` trains, :mod:`.metrics` measures,
:mod:`.report` says what a finished run is worth.
"""
