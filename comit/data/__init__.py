"""The paper's data sets, as published, to the manifest that ``comit train`` takes.

:mod:`.readers` one function a data set; :mod:`.manifest` splits, balances, counts and writes.
No picture is opened and nothing is downloaded: each data set has its own licence to agree to.
"""
