"""What people run instead, each a function from files to scores; :mod:`comit.bench.compare` runs
every one in a process of its own.

A peer reads with pydicom or PIL, averages to 224 x 224 with OpenCV, goes on as we do
(:func:`comit.image.preprocess.present`), so that its scores can be held against ours, and keeps
scores and thresholded masks in memory. It writes no results, checks no file and stops at the first
bad one: that is in its favour.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comit.bench.steady import steady_rate
from comit.masks import FOREGROUND
from comit.results import SCORES

if TYPE_CHECKING:
    from comit.engine.base import Engine
    from comit.image.preprocess import Presentation

BATCH = 4  # images a batch of a DataLoader: the fastest for these engines on a CPU
Grid = NDArray[np.float32]  # (1, 224, 224) in [0, 1]
Scores = Iterator[tuple[Sequence[int], NDArray[np.float32]]]  # which files, (N, 4): a batch


@dataclass(frozen=True)
class Task:
    """What a peer is to do."""

    peer: str
    model: str
    paths: tuple[str, ...]
    cores: int
    kind: str  # dicom or raster: what pydicom and PIL read


@dataclass(frozen=True)
class Answer:
    """What it did."""

    seconds: float  # from the first file to the last score, loading of the model left out
    steady: float | None  # images a second between the rows at 10 % and 90 %; None: too few
    scores: list[list[float]]  # of every file, in order, without chest; empty for another network


@dataclass(frozen=True)
class Peer:
    """A way to screen files, and what it takes."""

    what: str
    precision: str
    run: Callable[[Task], Callable[[], Scores]]
    packages: tuple[str, ...] = ()
    own_network: bool = True  # runs our network: its scores must be ours


def read(path: str, kind: str) -> Grid:
    """A file as a researcher reads it, prepared as ours are: (1, 224, 224) float32."""
    from comit.image.preprocess import Presentation, Window

    if kind != "dicom":
        image = import_module("PIL.Image")
        with image.open(path) as opened:
            samples = np.asarray(opened if opened.mode.startswith("I") else opened.convert("L"))
        return prepared(samples, Presentation())
    from pydicom import dcmread

    ds = dcmread(path)
    return prepared(ds.pixel_array, presentation(ds, Presentation, Window))


def prepared(samples: NDArray[Any], how: Presentation) -> Grid:
    """What comit.image.preprocess defines, the area average by OpenCV; sides of 224 or more."""
    cv2 = import_module("cv2")
    from comit.image.preprocess import SIZE, present

    values = samples.astype(np.float32)
    grid = cv2.resize(values, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return present(grid, how).pixels[None]


def presentation(ds: Any, make: Any, window: Any) -> Any:
    """Rescale, first window and polarity of a pydicom data set."""

    def first(value: Any) -> float:
        return float(value if isinstance(value, (int, float, str)) else next(iter(value)))

    voi = None
    if "WindowCenter" in ds and ds.WindowCenter is not None:
        center, width = ds.WindowCenter, ds.WindowWidth
        many = getattr(center, "__len__", None) is not None and not isinstance(center, str)
        voi = window(float(center[0] if many else center), float(width[0] if many else width))
        voi = voi if voi.width >= 1 else None
    return make(
        slope=first(ds.get("RescaleSlope", 1) or 1),
        intercept=first(ds.get("RescaleIntercept", 0) or 0),
        voi=voi,
        inverted=ds.PhotometricInterpretation == "MONOCHROME1",
    )


class Files:
    """A map-style data set, as torch's DataLoader takes one."""

    def __init__(self, paths: tuple[str, ...], load: Callable[[str], Grid]) -> None:
        self.paths, self.load = paths, load

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Grid:
        return self.load(self.paths[index])


def plain_loop(task: Task) -> Callable[[], Scores]:
    """Eager PyTorch in fp32, one file at a time, in one process."""
    import torch

    from comit.model.stored import load_network

    network = load_network(Path(task.model)).eval()

    def run() -> Scores:
        for i, path in enumerate(task.paths):
            with torch.inference_mode():
                outputs = network(torch.from_numpy(read(path, task.kind)[None]))
                outputs.masks().numpy() >= 0.5  # noqa: B015 (what is done with masks at least)
                yield [i], outputs.scores().numpy()

    return run


def loader(workers: int, engine: str, precision: str) -> Callable[[Task], Callable[[], Scores]]:
    """A DataLoader with worker processes in front of an engine; 0 workers are one a core."""

    def prepare(task: Task) -> Callable[[], Scores]:
        loaded = load(task, engine, precision)
        files = Files(task.paths, partial(read, kind=task.kind))
        return lambda: fed(loaded, batches(workers or task.cores, files))

    return prepare


def load(task: Task, engine: str, precision: str) -> Engine:
    """One of our engines, as fast as we know to set it up, and warm."""
    from comit.engine import load_engine

    loaded = load_engine(Path(task.model), engine, "cpu", precision, BATCH)
    loaded.infer(np.zeros((1, 1, 224, 224), np.float32))
    return loaded


def batches(workers: int, files: Any) -> Iterator[NDArray[np.float32]]:
    """(N, 1, 224, 224) batches of a DataLoader."""
    data: Any = import_module("torch.utils.data")
    for batch in data.DataLoader(files, batch_size=BATCH, num_workers=workers):
        yield batch.numpy()


def fed(engine: Engine, images: Iterator[NDArray[np.float32]]) -> Scores:
    """Runs batches on all lanes of an engine, in order."""
    with ThreadPoolExecutor(engine.lanes) as threads:
        waiting, begun = [], 0

        def infer(
            first: int, batch: NDArray[np.float32]
        ) -> tuple[Sequence[int], NDArray[np.float32]]:
            inference = engine.infer(batch)
            inference.masks >= FOREGROUND  # noqa: B015
            return range(first, first + len(batch)), inference.scores

        for batch in images:
            waiting.append(threads.submit(infer, begun, batch))
            begun += len(batch)
            if len(waiting) > engine.lanes:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def monai(task: Task) -> Callable[[], Scores]:
    """MONAI's reader, Dataset and DataLoader before OpenVINO in fp32."""
    monai_data: Any = import_module("monai.data")
    transforms: Any = import_module("monai.transforms")
    reader = (
        monai_data.PydicomReader(swap_ij=False)
        if task.kind == "dicom"
        else monai_data.PILReader(reverse_indexing=False)
    )
    steps = transforms.Compose(
        [transforms.LoadImage(reader=reader, image_only=True, dtype=None), MonaiPrepare(task.kind)]
    )
    loaded = load(task, "openvino", "fp32")

    def run() -> Scores:
        files = monai_data.Dataset(list(task.paths), steps)
        found = monai_data.DataLoader(files, batch_size=BATCH, num_workers=task.cores)
        return fed(loaded, (np.asarray(batch) for batch in found))

    return run


class MonaiPrepare:
    """A transform: our preprocessing of what MONAI's reader gave."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, image: Any) -> Grid:
        """(H, W) with MONAI's metadata to (1, 224, 224); DICOM rescale is done by the reader."""
        from comit.image.preprocess import Presentation, Window

        samples = np.ascontiguousarray(np.asarray(image))
        if self.kind != "dicom":
            return prepared(samples, Presentation())
        meta = image.meta

        def value(tag: str) -> float | None:
            found = meta.get(tag, {}).get("Value")
            return float(found[0]) if found else None

        center, width = value("00281050"), value("00281051")
        voi = Window(center, width) if center is not None and width is not None else None
        inverted = meta.get("00280004", {}).get("Value") == ["MONOCHROME1"]
        return prepared(samples, Presentation(voi=voi, inverted=inverted))


def ray_data(task: Task) -> Callable[[], Scores]:
    """Ray Data: files decoded by tasks, ONNX Runtime in an actor that starts with the clock."""
    ray: Any = import_module("ray")
    data: Any = import_module("ray.data")
    ray.init(
        num_cpus=task.cores, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    data.DataContext.get_current().enable_progress_bars = False
    model, cores, kind = task.model, task.cores, task.kind

    class Predict:
        def __init__(self) -> None:
            from comit.engine import load_engine

            self.engine = load_engine(Path(model), "onnxruntime", "cpu", "fp32", BATCH, cores)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            images = np.stack([np.asarray(i, np.float32) for i in batch["images"]])
            return {"at": batch["at"], "scores": self.engine.predict(images).scores}

    def run() -> Scores:
        items = [{"at": i, "path": p} for i, p in enumerate(task.paths)]
        found = (
            data.from_items(items)
            .map(lambda item: {"at": item["at"], "images": read(item["path"], kind)})
            .map_batches(Predict, batch_size=BATCH, concurrency=1, num_cpus=0)
        )
        for batch in found.iter_batches(batch_size=BATCH):
            yield batch["at"].tolist(), np.stack(batch["scores"])

    return run


def torchxrayvision(task: Task) -> Callable[[], Scores]:
    """Its batch script (scripts/process_image.py) with DenseNet-121, random weights."""
    import torch

    from comit.study.rivals import torchvision

    torchvision()  # also beside a torch that its operators do not load with
    xrv: Any = import_module("torchxrayvision")
    network = xrv.models.DenseNet(weights=None, num_classes=18).eval()
    crop, resize = xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(224, "cv2")

    def one(path: str) -> Grid:
        if task.kind == "dicom":
            from pydicom import dcmread

            picture, top = dcmread(path).pixel_array, 4095
        else:
            picture, top = np.asarray(import_module("PIL.Image").open(path).convert("L")), 255
        grid: Grid = resize(crop(xrv.datasets.normalize(picture, top)[None]))
        return np.asarray(grid, np.float32)

    def run() -> Scores:
        for i, path in enumerate(task.paths):
            with torch.inference_mode():
                yield [i], network(torch.from_numpy(one(path))[None]).numpy()[:, :3]

    return run


def loaders() -> dict[str, Peer]:
    """A DataLoader with 2 and with N workers before every engine and precision."""
    found = {}
    for name, count in (("2", 2), ("n", 0)):
        for engine, precision in (
            ("torch", "fp32"),
            ("torch", "bf16"),
            ("onnxruntime", "fp32"),
            ("openvino", "fp32"),
            ("openvino", "bf16"),
        ):
            text = f"DataLoader, {count or 'N'} workers, {engine}"
            run = loader(count, engine, precision)
            packages = ("torch", "onnx", "PIL", engine) if engine != "torch" else ("torch", "PIL")
            found[f"loader{name}-{engine}-{precision}"] = Peer(text, precision, run, packages)
    return found


PEERS = {
    "plain-loop": Peer("plain PyTorch loop, one at a time", "fp32", plain_loop, ("torch", "PIL")),
    **loaders(),
    "monai": Peer("MONAI transforms, DataLoader, OpenVINO", "fp32", monai, ("monai", "openvino")),
    "ray": Peer("Ray Data, ONNX Runtime", "fp32", ray_data, ("ray", "onnxruntime")),
    "torchxrayvision": Peer(
        "torchxrayvision's script: another network, random weights",
        "fp32",
        torchxrayvision,
        ("torchxrayvision",),
        own_network=False,
    ),
}


def missing(peer: Peer) -> str | None:
    """Why a peer cannot run here, or None."""
    for package in peer.packages:
        try:
            found = find_spec(package)
        except ModuleNotFoundError:  # of a name with a dot
            found = None
        if found is None:
            return f"{package} is not installed"
    return None


def main() -> None:
    """Reads a :class:`Task` as JSON from standard input, prints an :class:`Answer`."""
    given = json.loads(sys.stdin.read())
    task = Task(**{**given, "paths": tuple(given["paths"])})
    print(json.dumps(asdict(answer(PEERS[task.peer], PEERS[task.peer].run(task)))))


def answer(peer: Peer, run: Callable[[], Scores]) -> Answer:
    """Times one run; scores of batches in any order go to where their files are."""
    marks: list[tuple[float, int]] = []
    scores: dict[int, list[float]] = {}
    started = time.perf_counter()
    for at, found in run():
        marks.append((time.perf_counter(), len(found)))
        scores |= zip(at, found[:, : len(SCORES)].tolist(), strict=True)
    seconds = time.perf_counter() - started
    ordered = [row for _, row in sorted(scores.items())] if peer.own_network else []
    return Answer(round(seconds, 3), round(steady_rate(marks), 3) or None, ordered)


if __name__ == "__main__":
    from comit.bench import peers  # so that worker processes find the classes by their name

    peers.main()
