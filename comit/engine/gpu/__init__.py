"""Preprocessing, PNG filters and run lengths on an NVIDIA GPU, with the CPU's values.

    cuda/*.cuh   the arithmetic, C++ for GPU and CPU alike   tests compile it with g++
    compile      CUDA to machine code, kept on disk          NVRTC: no nvcc, no GPU needed
    device       what runs kernels: pycuda, else CuPy
    preprocess   stored values to pixels, comit.image.preprocess's steps
    run_lengths  masks to COCO run lengths
    screening    both around an engine, on one stream

:mod:`comit.image.preprocess` and :func:`comit.masks.encode` are the definitions.
"""
