"""Public data sets, as published, to the manifest that ``comit train`` takes.

:mod:`.readers` one function a data set, with :mod:`.boxed` (DICOM files with boxes) and
:mod:`.outlined` (outlines of lungs); :mod:`.manifest` splits, balances, counts and writes.
Nothing is downloaded: each data set has its own licence to agree to. No picture is changed or
decoded, but for the raw pictures of JSRT and for masks, which are drawn beside the manifest.
"""
