"""Capturing a CUDA graph: what was recorded runs at every launch, and nothing is left behind."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from comit.engine.gpu.cuda_graph import captured

OK, BROKEN = SimpleNamespace(name="CUDA_SUCCESS"), SimpleNamespace(name="CUDA_ERROR")
STREAM = 7
Work = Callable[[], object]


class Driver(ModuleType):
    """``cuda.bindings.driver`` with one stream; ``refusing`` names the call that fails."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=OK)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")

    def __init__(self, refusing: str = "") -> None:
        super().__init__("cuda.bindings.driver")
        self.refusing = refusing
        self.recorded: list[Work] | None = None
        self.alive: dict[int, list[Work]] = {}  # graphs and executables

    def enqueue(self, work: Work) -> None:
        """What a kernel's launch does: runs, or is recorded."""
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def _made(self, work: list[Work], call: str) -> tuple[Any, ...]:
        if self.refusing == call:
            return BROKEN, None
        handle = len(self.alive) + 1
        self.alive[handle] = work
        return OK, handle

    def cuStreamBeginCapture(self, stream: int, mode: str) -> tuple[Any]:  # noqa: N802
        assert stream == STREAM and self.recorded is None
        if self.refusing == "cuStreamBeginCapture":
            return (BROKEN,)
        self.recorded = []
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        assert stream == STREAM and self.recorded is not None
        work, self.recorded = self.recorded, None  # it ends, whatever is answered
        return self._made(work, "cuStreamEndCapture")

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:  # noqa: N802
        return self._made([*self.alive[graph]], "cuGraphInstantiate")

    def cuGraphDestroy(self, graph: int) -> tuple[Any]:  # noqa: N802
        del self.alive[graph]
        return (OK,)

    def cuGraphLaunch(self, executable: int, stream: int) -> tuple[Any]:  # noqa: N802
        assert stream == STREAM
        if self.refusing == "cuGraphLaunch":
            return (BROKEN,)
        for work in self.alive[executable]:
            work()
        return (OK,)

    cuGraphExecDestroy = cuGraphDestroy  # noqa: N815


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Driver:
    fake = Driver(getattr(request, "param", ""))
    bindings = ModuleType("cuda.bindings")
    bindings.driver = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    return fake


def is_as_before(driver: Driver) -> bool:
    """Whether work runs at once again and no handle is left."""
    done: list[int] = []
    driver.enqueue(lambda: done.append(1))
    return done == [1] and not driver.alive


def test_work_is_recorded_once_and_launched_often(driver: Driver) -> None:
    done: list[str] = []

    def work() -> None:
        driver.enqueue(lambda: done.append("copy"))
        driver.enqueue(lambda: done.append("network"))

    launch = captured(work, STREAM)
    assert launch is not None and done == []
    launch()
    launch()
    assert done == ["copy", "network"] * 2
    del launch
    gc.collect()
    assert is_as_before(driver)


@pytest.mark.parametrize(
    "driver",
    ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"],
    indirect=True,
)
def test_what_cuda_refuses_is_no_graph(driver: Driver) -> None:
    assert captured(lambda: driver.enqueue(lambda: None), STREAM) is None
    assert is_as_before(driver)


def test_work_that_fails_ends_the_capture(driver: Driver) -> None:
    def work() -> None:
        raise RuntimeError("TensorRT did not run the engine")

    assert captured(work, STREAM) is None
    assert is_as_before(driver)


@pytest.mark.parametrize("driver", ["cuGraphLaunch"], indirect=True)
def test_a_launch_that_fails_is_an_error(driver: Driver) -> None:
    launch = captured(lambda: None, STREAM)
    assert launch is not None
    with pytest.raises(RuntimeError, match="cuGraphLaunch: CUDA_ERROR"):
        launch()


def test_without_the_bindings_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert captured(lambda: None, 7) is None


def test_without_a_driver_there_is_none() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver")
    try:
        here = bindings.cuInit(0)[0] == bindings.CUresult.CUDA_SUCCESS
    except RuntimeError:
        here = False
    if here:
        pytest.skip("a GPU is here: pytest -m gpu captures on it")
    assert captured(lambda: None, 7) is None
