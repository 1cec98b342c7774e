"""Preprocessing, PNG filters and run lengths on an NVIDIA GPU, with the CPU's values.

    cuda/*.cuh   the arithmetic, C++ for GPU and CPU alike   tests compile it with g++
    compile      CUDA to machine code, kept on disk          NVRTC: no nvcc, no GPU needed
    batch        images of different sizes in one block of bytes
    device       what runs kernels: pycuda, else CuPy
    png          a PNG's scanlines, inflated alone
    preprocess   stored values to pixels, comit.preprocess's steps
    runs         masks to COCO run lengths
    screening    both around an engine, on one stream

:mod:`comit.preprocess` and :func:`comit.postprocess.encode` are the definitions.
"""
