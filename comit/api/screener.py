"""Images to results, for a notebook, a service or an actor."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from comit.api.result import Result
from comit.card import BUNDLED
from comit.errors import UsageError
from comit.options import Options

if TYPE_CHECKING:
    from comit.api.service import Item, Service
    from comit.engine.base import Engine
    from comit.image.base import ViewPolicy
    from comit.pipeline.lanes import Masks


class Screener:
    """Screens images one by one or as they come; a context manager.

    Options are those of :class:`comit.Options`, checked here. Engine and decoding processes are
    loaded by the first call, in the process in which it is made: a screener is pickled as its
    options alone. All methods may be called by several threads at once, which share batches.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        engine: str = Options.engine,
        device: str = Options.device,
        precision: str = Options.precision,
        batch_size: int | None = Options.batch_size,
        workers: int | None = Options.workers,
        masks: Masks = Options.masks,
        operating_point: str = Options.operating_point,
        view_policy: ViewPolicy = Options.view_policy,
        timeout: float = Options.timeout,
        ring_bytes: int = Options.ring_bytes,
    ) -> None:
        self.__setstate__(
            Options(
                model=BUNDLED if model is None else Path(model),
                engine=engine,
                device=device,
                precision=precision,
                batch_size=batch_size,
                workers=workers,
                masks=masks,
                operating_point=operating_point,
                view_policy=view_policy,
                timeout=timeout,
                ring_bytes=ring_bytes,
            )
        )

    def __getstate__(self) -> Options:
        return self.options

    def __setstate__(self, options: Options) -> None:
        self.options = options
        self._lock = Lock()
        self._service: Service | None = None
        self._closed = False

    def __enter__(self) -> Screener:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def screen(self, images: Item | Iterable[Item]) -> Iterator[Result]:
        """Yields a result for every image, in their order.

        An image is the path of a DICOM, PNG or JPEG file, its bytes, or an array (H, W) of grey
        values, air dark. Files and bytes are decoded by other processes, so that one that crashes
        or hangs them costs itself; arrays are preprocessed in this process. Images are taken as
        results are, and a few batches ahead: their number and their memory have a bound.

        What is wrong with an image is the ``reason`` of its result. Raises ValueError for an array
        that is no image, and what :meth:`load` does.
        """
        service = self._loaded()
        waiting: deque[Future[Result]] = deque()
        for image in _several(images):
            waiting.append(service.submit(image))
            while waiting and (len(waiting) > service.ahead or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def submit(self, image: Item) -> Future[Result]:
        """Asks for one image and does not wait; raises as :meth:`screen` does.

        The future cannot be cancelled. ``asyncio.wrap_future`` makes it awaitable.
        """
        return self._loaded().submit(image)

    def load(self) -> Screener:
        """Loads engine and decoding processes now, if no call has before.

        Raises ModelError for a model that cannot be used, MissingExtra for an engine that is not
        installed, UsageError for another option, or where the screener is closed.
        """
        self._loaded()
        return self

    @property
    def engine(self) -> Engine:
        """The engine in use, with its name, precision, device and batch size; loads it."""
        return self._loaded().engine

    def close(self) -> None:
        """Answers what was asked for and ends everything; no call is taken any more."""
        with self._lock:
            self._closed = True
            service, self._service = self._service, None
        if service is not None:
            service.close()

    def _loaded(self) -> Service:
        from comit.api.service import Service

        with self._lock:
            if self._closed:
                raise UsageError("this screener is closed")
            service = self._service
            if service is not None and service.pid != os.getpid():
                if service.engine.name == "torch":  # OpenMP would wait for the parent's threads
                    raise UsageError(
                        "this screener ran the engine torch before its process was forked: start "
                        "the other process by the method spawn, or load the screener there alone"
                    )
                service = None
            if service is None or not service.open:
                self._service = service = Service(self.options)
                weakref.finalize(self, service.end).atexit = False  # it closes itself then
            return service


def _several(images: Item | Iterable[Item]) -> Iterable[Item]:
    """A single image as a list of one."""
    single = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview)
    if single or getattr(images, "ndim", None) == 2:
        return [images]  # type: ignore[list-item]
    return images  # type: ignore[return-value]
