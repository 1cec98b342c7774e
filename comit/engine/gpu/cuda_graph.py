"""The work of a stream as one launch: a CUDA graph, through NVIDIA's cuda-bindings.

*Unverified on a GPU*: it was written without one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


def captured(work: Callable[[], object], stream: int) -> Callable[[], None] | None:
    """What ``work`` puts on the CUstream ``stream``, recorded; calling the result does it again.

    Nothing is done while it is recorded, and the addresses stay those of then. None where CUDA or
    ``work``, by a RuntimeError, does not go along, or cuda-bindings are not installed: the stream
    is then as before. CUDA C++ Programming Guide, "Creating a Graph Using Stream Capture"; the mode
    is the one in which other threads may go on allocating memory.
    """
    try:
        from cuda.bindings import driver
    except ModuleNotFoundError:
        return None

    def done(function: Callable[..., Any], *arguments: Any) -> Any:
        status, *found = function(*arguments)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{function.__name__}: {status.name}")
        return found[0] if found else None

    def record() -> Any:
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        done(driver.cuStreamBeginCapture, stream, mode)
        with ExitStack() as ending:
            # Whatever becomes of it: this ends the capture, also one that CUDA has broken off.
            try:
                work()
            finally:
                graph = done(driver.cuStreamEndCapture, stream)
                ending.callback(driver.cuGraphDestroy, graph)
            return done(driver.cuGraphInstantiate, graph, 0)

    try:
        executable = record()
    except RuntimeError:  # a call's status, no driver, TensorRT
        return None

    def launch() -> None:
        done(driver.cuGraphLaunch, executable, stream)

    weakref.finalize(launch, driver.cuGraphExecDestroy, executable)
    return launch
