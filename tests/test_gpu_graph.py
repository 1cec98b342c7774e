"""Capturing a CUDA graph: what is asked of the driver, and that a refusal leaves nothing behind."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from comit.engine.gpu.cuda_graph import captured

OK, BROKEN = SimpleNamespace(name="CUDA_SUCCESS"), SimpleNamespace(name="CUDA_ERROR")


class Driver(ModuleType):
    """``cuda.bindings.driver`` with one stream; ``refusing`` names the call that fails."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=OK)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")

    def __init__(self, refusing: str = "") -> None:
        super().__init__("cuda.bindings.driver")
        self.calls: list[tuple[Any, ...]] = []
        self.capturing = False
        for name, value in {
            "cuStreamBeginCapture": None,
            "cuStreamEndCapture": "graph",
            "cuGraphInstantiate": "executable",
            "cuGraphDestroy": None,
            "cuGraphLaunch": None,
            "cuGraphExecDestroy": None,
        }.items():
            setattr(self, name, self._call(name, value, name == refusing))

    def _call(self, name: str, value: Any, refused: bool) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if name == "cuStreamBeginCapture":
                self.capturing = not refused
            if name == "cuStreamEndCapture":  # ends it, whatever it says
                assert self.capturing
                self.capturing = False
            found = (value,) if value else ()
            return (BROKEN if refused else OK, *found)

        call.__name__ = name
        return call


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Driver:
    fake = Driver(getattr(request, "param", ""))
    bindings = ModuleType("cuda.bindings")
    bindings.driver = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    return fake


def test_work_is_recorded_once_and_launched_often(driver: Driver) -> None:
    launch = captured(lambda: driver.calls.append(("work",)), 7)
    assert driver.calls == [
        ("cuStreamBeginCapture", 7, "thread local"),
        ("work",),
        ("cuStreamEndCapture", 7),
        ("cuGraphInstantiate", "graph", 0),
        ("cuGraphDestroy", "graph"),
    ]
    assert launch is not None
    driver.calls.clear()
    launch()
    launch()
    assert driver.calls == 2 * [("cuGraphLaunch", "executable", 7)]
    del launch
    gc.collect()
    assert driver.calls[2:] == [("cuGraphExecDestroy", "executable")]


@pytest.mark.parametrize(
    "driver",
    ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"],
    indirect=True,
)
def test_what_cuda_refuses_is_no_graph(driver: Driver) -> None:
    assert captured(lambda: None, 7) is None
    assert not driver.capturing
    made = ("cuGraphInstantiate", "graph", 0) in driver.calls
    assert (("cuGraphDestroy", "graph") in driver.calls) == made


def test_work_that_fails_ends_the_capture(driver: Driver) -> None:
    def work() -> None:
        raise RuntimeError("TensorRT did not run the engine")

    assert captured(work, 7) is None
    assert driver.calls[-2:] == [("cuStreamEndCapture", 7), ("cuGraphDestroy", "graph")]
    assert not driver.capturing


@pytest.mark.parametrize("driver", ["cuGraphLaunch"], indirect=True)
def test_a_launch_that_fails_is_an_error(driver: Driver) -> None:
    launch = captured(lambda: None, 7)
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
