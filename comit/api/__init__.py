"""What a program calls that has comit in it: the names that :mod:`comit` itself offers.

radiograph  one file: pixels, samples and what its header says
result      what screening found in one image
screener    images to results, in the order they are given
service     the thread behind a screener, with its engine and its decoding processes
"""
