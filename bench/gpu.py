"""Everything that needs an NVIDIA GPU, measured in one call; what cannot run says why.

Each part writes its rows and its time, or its reason, so nothing is left out in silence. The
ceilings that rates are held against (a matrix product, copies) are measured in the same call.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from comit.bench.latency import measure
from comit.card import BUNDLED, open_model
from comit.demo import Kind, draw, store
from comit.engine import BACKENDS
from comit.engine.base import Engine
from comit.engine.gpu.device import Device
from comit.engine.gpu.preprocess import Preprocessor
from comit.engine.gpu.pycuda_device import open_device
from comit.engine.gpu.run_lengths import RunLengths
from comit.errors import ComitError, ItemError
from comit.export.parity import TOLERANCES, compare, phantoms
from comit.image import open_image
from comit.image.preprocess import Presentation, Window, preprocess
from comit.image.samples import Pictures, Source, takes
from comit.machine import machine
from comit.model.network import COMiTNet, NetworkConfig, pool_positions, unpool
from comit.model.stored import load_network, to_bytes

Row = dict[str, Any]
UNCOMPRESSED = (Kind("png"), Kind("dcm", 12))
# Decoded by processes alone: baseline, lossless, JPEG 2000.
COMPRESSED = (Kind("jpg"), Kind("dcm", 12, codec="jpeg"), Kind("dcm", 12, codec="jpeg2000"))


@dataclass(frozen=True)
class Settings:
    """What is measured; the defaults are for an H200 and about eight minutes."""

    device: str = "cuda:0"
    data: Path | None = None  # a folder of X-rays
    minutes: float = 9.0  # no part is begun after them
    batch_sizes: tuple[int, ...] = (1, 16, 64)
    width: float = 1.0  # of the network whose rate is measured
    gemm: int = 8192  # rows and columns of the matrix product
    copied: int = 2**31  # bytes of a copy
    repeat: int = 10  # timed runs, whose median counts
    seconds: float = 2.0  # for a rate with all lanes busy
    files: int = 64  # of `data`, at most
    screened: int = 2048  # files of each format that go through the whole pipeline
    side: float = 1.0  # of their pictures, times 1024 or 2500 x 2048 pixels


@dataclass
class Part:
    """One table of the report."""

    name: str
    status: str = "not run"  # ok, failed or not run
    reason: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


class Absent(Exception):
    """Something a part needs is not on this machine."""


def run(settings: Settings, out: Path, say: Callable[[str], None] = print) -> list[Part]:
    """Every part in turn; ``out``.json and ``out``.md are written anew after each."""
    suite = Suite(settings)
    parts = [Part(name) for name in suite.parts]
    began = time.perf_counter()
    here = machine()
    for part in parts:
        started = time.perf_counter()
        if started - began >= 60 * settings.minutes:
            part.reason = f"the {settings.minutes:g} minutes were over"
        else:
            _run(part, suite.parts[part.name])
            part.seconds = round(time.perf_counter() - started, 1)
        say(f"{part.name}: {part.status}{part.reason and ', ' + part.reason} ({part.seconds} s)")
        report = {"machine": here, "command": sys.argv, "settings": vars(settings)}
        text = json.dumps(report | {"parts": [vars(p) for p in parts]}, indent=1, default=str)
        out.with_suffix(".json").write_text(text + "\n")
        out.with_suffix(".md").write_text(markdown(here, parts))
    return parts


def _run(part: Part, measured: Callable[[list[Row]], None]) -> None:
    try:
        measured(part.rows)  # rows so far stay where a later one fails
        bad = [r for r in part.rows if r.get("ok") is False]
        if bad:
            part.status = "failed"
            part.reason = f"{len(bad)} of {len(part.rows)} beyond the tolerance"
        elif part.rows and all("why not" in r for r in part.rows):
            part.reason = "nothing of it could run"
        else:
            part.status = "ok"
    except (Absent, ComitError) as error:
        part.reason = str(error)
    except Exception as error:  # a report with one hole is worth more than none
        part.status, part.reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0]


class Suite:
    """The parts, and what several of them use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device("cpu" if settings.device == "cpu" else settings.device)
        self.flops_ceiling: float | None = None  # FLOP/s of the matrix product
        self.copy_ceiling: float | None = None  # bytes/s read and written on the GPU
        self.parts: dict[str, Callable[[list[Row]], None]] = {
            "ceilings": self.ceilings,
            "kernel parity": self.kernel_parity,
            "engine parity": self.engine_parity,
            "torch variants": self.torch_variants,
            "engine latency": self.latency,
            "kernel rates": self.kernel_rates,
            "pipeline": self.pipeline,
            "unpooling": self.unpooling,
            "layers": self.layers,
        }

    def ceilings(self, rows: list[Row]) -> None:
        """float16 matrix product with float32 accumulation on random data, and copies."""
        self._need_device()
        s, n = self.settings, self.settings.gemm
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.manual_seed(0)
        a, b = (torch.randn(n, n, device=self.device).half() for _ in range(2))
        seconds = self.timed(torch.mm, a, b)
        self.flops_ceiling = 2 * n**3 / seconds
        rows.append({"what": f"fp16 product {n}^3", "TFLOP/s": round(self.flops_ceiling / 1e12, 1)})
        source = torch.empty(s.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        seconds = self.timed(target.copy_, source)
        self.copy_ceiling = 2 * s.copied / seconds
        rows.append({"what": "copy on the GPU, read + write", "GB/s": self.copy_ceiling / 1e9})
        pinned = torch.empty(s.copied, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        for what, to, of in (("to the GPU", source, pinned), ("from the GPU", pinned, source)):
            seconds = self.timed(to.copy_, of, True)
            rows.append({"what": f"copy {what}, page-locked", "GB/s": s.copied / seconds / 1e9})

    def kernel_parity(self, rows: list[Row]) -> None:
        """Preprocessing and run lengths of the GPU beside the CPU's definitions."""
        gpu = open_kernels(self.settings.device)
        with gpu.current():
            stream = gpu.stream()
            for what, images in (("generated", generated()), ("real", self._real())):
                rows.append({"what": f"preprocessing, {what}", "kernels by": gpu.by}
                            | preprocessing_parity(gpu, images, stream))  # fmt: skip
            rows.append({"what": "run lengths", "kernels by": gpu.by} | runs_parity(gpu, stream))

    def engine_parity(self, rows: list[Row]) -> None:
        """Scores and masks of every engine beside PyTorch in float32, on the bundled model."""
        self._need_device()
        content = open_model(BUNDLED)[1]
        half = to_bytes(load_network(content), "fp16", "bundled")
        images, source = self._pixels()
        reference = reference_of(load_network(content), images, self.device)
        for name, precision, model in (
            ("torch", "fp32", content),
            ("torch", "fp16", content),
            ("onnxruntime", "fp32", content),
            ("onnxruntime", "fp16", half),
            ("tensorrt", "fp16", half),
        ):
            row: Row = {"engine": name, "precision": precision}
            rows.append(row)
            engine = self._engine(row, name, model, precision, 8)
            if engine is None:
                continue
            parity = compare(*reference, engine.predict(images), source)
            engine.close()
            row |= {
                "images": f"{parity.images} {source}",
                "score": parity.score,
                "lung IoU": parity.lung_iou,
                "disease IoU": parity.disease_iou,
                "ok": parity.within(TOLERANCES[precision]),
                "said": "; ".join(engine.notes),
            }

    def torch_variants(self, rows: list[Row]) -> None:
        """The arithmetic alone, fp16: no copies from and to the host, one CUDA graph."""
        from comit.engine.torch import VARIANTS, Captured, on_gpu

        self._need_gpu()
        network, work = full_network(self.settings.width), flops(self.settings.width)
        torch.backends.cudnn.benchmark = True
        for variant in VARIANTS:
            for size in self.settings.batch_sizes:
                row: Row = {"variant": variant, "batch": size}
                rows.append(row)
                try:
                    graph = on_gpu(network, torch.float16, self.device, variant)
                    captured = Captured(graph, size, torch.float16, self.device)
                    seconds = self.timed(captured.replay)
                except Exception as error:  # one variant that fails hides no other
                    row["why not"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                    torch.cuda.empty_cache()
                    continue
                row |= {"ms": 1e3 * seconds, "images/s": size / seconds}
                row |= self._share(work * size / seconds)

    def latency(self, rows: list[Row]) -> None:
        """Every engine with its copies, one call at a time and with all lanes busy."""
        network, work = full_network(self.settings.width), flops(self.settings.width)
        files = {p: to_bytes(network, p, "full") for p in ("fp32", "fp16")}
        for name in ("tensorrt", "onnxruntime", "torch"):
            for precision in ("fp16", "fp32"):
                sizes = self.settings.batch_sizes
                for size in sizes if precision == "fp16" else sizes[-1:]:  # fp32 takes long
                    row: Row = {"engine": name, "precision": precision, "batch": size}
                    rows.append(row)
                    engine = self._engine(row, name, files[precision], precision, size)
                    if engine is None:
                        break
                    found = measure(
                        iter([engine]).__next__, self.settings.repeat, self.settings.seconds
                    )
                    row |= {"p50 ms": found.p50_ms, "p90 ms": found.p90_ms, "lanes": found.lanes}
                    row |= {"images/s": found.images_per_second}
                    row |= {"CUDA graph": getattr(engine, "graph", None)}
                    row |= self._share(work * found.images_per_second)
                    row["said"] = "; ".join(engine.notes)

    def kernel_rates(self, rows: list[Row]) -> None:
        """Images a second of the kernels, their samples already on the host's side of the bus."""
        gpu = open_kernels(self.settings.device)
        rng, repeat = np.random.default_rng(0), self.settings.repeat
        n = max(self.settings.batch_sizes)
        with gpu.current():
            stream = gpu.stream()
            preprocessor, lengths = Preprocessor(gpu), RunLengths(gpu)

            def prepare(pictures: Pictures) -> None:
                preprocessor.start(pictures, stream)
                preprocessor.outcomes(stream)

            for height, width, dtype in ((1024, 1024, np.uint8), (2500, 2048, np.uint16)):
                samples = rng.integers(0, 4000, (height, width)).astype(dtype)
                pictures = gpu.pictures([(samples, Presentation())] * n)
                prepare(pictures)
                seconds = wall(repeat, prepare, pictures)
                what = f"preprocess {height} x {width} {np.dtype(dtype)}, with its copies"
                rows.append({"what": what, "batch": n, "images/s": n / seconds,
                             "GB/s of samples": n * samples.nbytes / seconds / 1e9})  # fmt: skip
            masks = rng.integers(0, 256, (n, 2, 224, 224)).astype(np.uint8)
            memory = gpu.empty(masks.nbytes)
            gpu.upload(memory, masks, stream)

            def encode() -> None:
                lengths.start(memory, n, stream)
                gpu.wait(stream)

            encode()
            seconds = wall(repeat, encode)
            rows.append({"what": "run lengths of noise", "batch": n, "images/s": n / seconds})

    def pipeline(self, rows: list[Row]) -> None:
        """``comit screen`` from files to Parquet beside its engine alone, by kind of file."""
        from comit.bench.throughput import measure as throughput
        from comit.options import Options

        self._need_device()
        for kind, engine in ways():
            row: Row = {"files": f"{kind.codec} {kind.suffix}", "engine": engine}
            rows.append(row)
            options = Options(engine=engine, device=self.settings.device)
            with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
                self._draw(Path(folder), kind)
                try:
                    found = throughput(Path(folder), options, self.settings.seconds)
                except ComitError as error:
                    row["why not"] = str(error)
                    continue
            row |= {
                "precision": found.engine["precision"],
                "takes samples": found.engine["takes_samples"],
                "screened": found.images,
                "images/s": found.images_per_second["median"],
                "steady": found.steady["median"],
                "engine alone": found.engine_rate,
                "efficiency": found.efficiency["median"],
                "bottleneck": found.bottleneck,
            }

    def _draw(self, folder: Path, kind: Kind) -> None:
        """``screened`` files of one kind (compressed: a quarter): four pictures, many names."""
        import cv2

        height, width = (2500, 2048) if kind.suffix == "dcm" else (1024, 1024)
        size = round(width * self.settings.side), round(height * self.settings.side)
        for number in range(4):
            picture = cv2.resize(draw("chest", np.random.default_rng(number)), size)
            path = store(folder, np.clip(picture, 0, 1).astype(np.float32), kind, 0, number)
            count = self.settings.screened // (4 if kind in COMPRESSED else 1)
            for copy in range(number + 4, count, 4):
                path.with_name(f"{copy}{path.suffix}").hardlink_to(path)

    def unpooling(self, rows: list[Row]) -> None:
        """Our formulation, scattering by index and max_unpool2d, at the decoder's five sizes."""
        self._need_device()
        n, dtype = max(self.settings.batch_sizes), torch.float16
        for side, channels in ((14, 512), (28, 512), (56, 256), (112, 128), (224, 64)):
            channels = max(8, round(channels * self.settings.width))
            x = torch.relu(torch.randn(n, channels, side, side, device=self.device)).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            pooled, indices = F.max_pool2d(x.float(), 2, return_indices=True)
            pooled, positions = pooled.to(dtype), pool_positions(x, pooled.to(dtype))
            variants: dict[str, tuple[Callable[..., Any], *tuple[Any, ...]]] = {
                "ours": (unpool, pooled, positions),
                "scatter": (scatter, pooled, indices, x.shape),
                "max_unpool2d": (F.max_unpool2d, pooled, indices, [2, 2]),
            }
            least_bytes = x.numel() * 2 * 1.25  # the output, and the pooled values
            for name, work in variants.items():
                row: Row = {"size": f"{n} x {channels} x {side}^2", "variant": name}
                rows.append(row)
                try:
                    seconds = self.timed(*work)
                except Exception as error:  # an operation this device lacks
                    row["why not"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                    continue
                row |= {"ms": 1e3 * seconds, "GB/s needed": least_bytes / seconds / 1e9}

    def layers(self, rows: list[Row]) -> None:
        """Each convolution alone beside what arithmetic and memory allow (roofline)."""
        self._need_device()
        n, dtype = max(self.settings.batch_sizes), torch.float16
        torch.backends.cudnn.benchmark = True
        for (inputs, outputs, side), count in convolutions(self.settings.width).items():
            layer = nn.Conv2d(inputs, outputs, 3, padding=1).to(self.device, dtype)
            layer = layer.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
            x = torch.randn(n, inputs, side, side, device=self.device).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            seconds = self.timed(layer, x)
            work = 2 * 9 * inputs * outputs * side * side * n
            moved = 2 * (n * side * side * (inputs + outputs) + 9 * inputs * outputs)
            row: Row = {
                "layer": f"{inputs} > {outputs}, {side}^2", "times": count, "ms": 1e3 * seconds,
                "TFLOP/s": work / seconds / 1e12,
            }  # fmt: skip
            if self.flops_ceiling and self.copy_ceiling:
                bounds = {"arithmetic": work / self.flops_ceiling,
                          "memory": moved / self.copy_ceiling}  # fmt: skip
                bound = max(bounds, key=lambda k: bounds[k])
                row |= {"bound by": bound, "of the bound": bounds[bound] / seconds}
            rows.append(row)

    def timed(self, work: Callable[..., Any], *given: Any) -> float:
        """Median seconds of a call: the GPU's own clock, after three that warm up."""
        for _ in range(3):
            work(*given)
        if self.device.type == "cpu":
            return wall(self.settings.repeat, work, *given)
        taken = []
        for _ in range(self.settings.repeat):
            start, end = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            start.record()
            work(*given)
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end) / 1e3)
        return float(np.median(taken))

    def _share(self, flop_per_second: float) -> Row:
        """A rate of arithmetic, and what it is of the matrix product's."""
        row: Row = {"TFLOP/s": flop_per_second / 1e12}
        if self.flops_ceiling:
            row["of the product"] = flop_per_second / self.flops_ceiling
        return row

    def _engine(
        self, row: Row, name: str, model: bytes, precision: str, size: int
    ) -> Engine | None:
        """A loaded engine; None, and in ``row`` what it said, where it cannot be had."""
        from importlib import import_module

        backend = BACKENDS[name]
        try:
            kind = getattr(import_module(backend.module), backend.engine)
            engine: Engine = kind(model, self.settings.device, precision, size)
        except Exception as error:  # what it said is the result
            row["why not"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return None
        return engine

    def _pixels(self) -> tuple[NDArray[np.float32], str]:
        """(N, 1, 224, 224) of real X-rays where there are some, else of phantoms."""
        real = [preprocess(s, p).pixels for s, p in self._real() if isinstance(s, np.ndarray)]
        if not real:
            return phantoms(), "synthetic phantoms"
        return np.stack(real)[:, None], "X-rays"

    def _real(self) -> list[tuple[Source, Presentation]]:
        """Readable X-rays of the data folder, spread over its names."""
        if self.settings.data is None:
            return []
        paths = sorted(p for p in self.settings.data.rglob("*") if p.is_file())
        found: list[tuple[Source, Presentation]] = []
        for path in paths[:: max(1, len(paths) // self.settings.files)]:
            try:
                image = open_image(path.read_bytes())
                samples = image.samples()
                preprocess(samples, image.presentation)
            except ItemError:
                continue
            if takes(samples.shape, samples.dtype, image.presentation):
                found.append((samples, image.presentation))
        return found

    def _need_device(self) -> None:
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise Absent("this torch has no CUDA, or finds no GPU")

    def _need_gpu(self) -> None:
        self._need_device()
        if self.device.type != "cuda":
            raise Absent("needs a GPU")


def ways() -> Iterator[tuple[Kind, str]]:
    """Kinds of files and engine of the whole pipeline's runs."""
    for kind in UNCOMPRESSED:
        for engine in ("tensorrt", "onnxruntime", "torch"):
            yield kind, engine
    for kind in COMPRESSED:
        for engine in ("tensorrt", "torch"):
            yield kind, engine


def wall(repeat: int, work: Callable[..., Any], *given: Any) -> float:
    """Median seconds of a call that returns when it is done."""
    taken = []
    for _ in range(repeat):
        started = time.perf_counter()
        work(*given)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def scatter(pooled: torch.Tensor, indices: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Unpools by writing each value to its index: (N, C, h, w) to ``shape``."""
    n, channels, height, width = shape
    room = pooled.new_zeros(n, channels, height * width)
    return room.scatter_(2, indices.flatten(2), pooled.flatten(2)).view(shape)


def open_kernels(name: str) -> Device:
    """A GPU to run the kernels on."""
    if name == "cpu":
        raise Absent("needs a GPU")
    return open_device(name)


def generated() -> list[tuple[Source, Presentation]]:
    """Drawn samples of each type and odd sizes, with each kind of presentation."""
    rng = np.random.default_rng(0)
    found: list[tuple[Source, Presentation]] = []
    shown = (
        Presentation(),
        Presentation(inverted=True, voi=Window(2000, 3000)),
        Presentation(2, -1000, voi=Window(3000, 5000, "SIGMOID")),
        Presentation(padding=(0, 0)),
    )
    for i, (height, width) in enumerate([(224, 224), (1024, 1024), (2500, 2048), (97, 433)] * 3):
        dtype = (np.uint8, np.uint16, np.int16)[i // 4]
        picture = np.add.outer(np.sin(np.arange(height) / 90), np.cos(np.arange(width) / 70))
        top = 250 if dtype is np.uint8 else 4000
        samples = (picture / 4 + 0.5) * top * rng.uniform(0.9, 1, picture.shape)
        found.append((samples.astype(dtype), shown[i % 4]))
    return found


def preprocessing_parity(
    gpu: Device, images: Sequence[tuple[Source, Presentation]], stream: Any
) -> Row:
    """The largest difference of a float16 pixel from the CPU's, in batches of eight."""
    if not images:
        return {"why not": "no such images here"}
    preprocessor, worst = Preprocessor(gpu), 0.0
    for i in range(0, len(images), 8):
        batch = images[i : i + 8]
        memory = preprocessor.start(gpu.pictures(batch), stream)
        preprocessor.outcomes(stream)
        found = np.empty((len(batch), 224, 224), np.float16)
        gpu.download(found, memory, stream)
        gpu.wait(stream)
        for pixels, (samples, presentation) in zip(found, batch, strict=True):
            if isinstance(samples, np.ndarray):
                expected = preprocess(samples, presentation).pixels
                worst = max(worst, float(np.abs(pixels - expected).max()))
    return {"images": len(images), "difference": worst, "ok": worst <= 1e-3}


def runs_parity(gpu: Device, stream: Any) -> Row:
    """Whether run lengths of noise, blobs and plain masks are COCO's, to the letter."""
    from comit.masks import FOREGROUND, encode, rle

    rng = np.random.default_rng(0)
    masks = rng.integers(0, 256, (9, 2, 224, 224)).astype(np.uint8)
    masks[3:6] = np.kron(rng.integers(0, 2, (3, 2, 14, 14)), np.ones((16, 16))) * 255
    masks[6], masks[7], masks[8] = 0, 255, 127
    memory, lengths = gpu.empty(masks.nbytes), RunLengths(gpu)
    gpu.upload(memory, masks, stream)
    lengths.start(memory, len(masks), stream)
    same = [
        [rle(found.lung), rle(found.disease)] == encode(mask >= FOREGROUND)
        for found, mask in zip(lengths.finish(stream), masks, strict=True)
    ]
    return {"images": len(same), "difference": same.count(False), "ok": all(same)}


def reference_of(
    network: COMiTNet, images: NDArray[np.float32], device: torch.device
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(N, 4) scores and (N, 2, 224, 224) masks in [0, 1] of PyTorch in float32, without TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    network = network.eval().to(device)
    scores, masks = [], []
    with torch.inference_mode():
        for i in range(0, len(images), 4):
            outputs = network(torch.from_numpy(images[i : i + 4]).to(device))
            scores.append(outputs.scores().cpu().numpy())
            masks.append(outputs.masks().cpu().numpy())
    return np.concatenate(scores), np.concatenate(masks)


def full_network(width: float) -> COMiTNet:
    """The network with random weights whose activations stay in float16's range."""
    torch.manual_seed(0)
    return COMiTNet(NetworkConfig(width=width)).eval()


def convolutions(width: float) -> dict[tuple[int, int, int], int]:
    """(inputs, outputs, side) of every convolution of an image, and how often it is done."""
    with torch.device("meta"):
        network = COMiTNet(NetworkConfig(width=width)).eval()
        network.portable_unpooling = True
        found: dict[tuple[int, int, int], int] = {}

        def note(layer: nn.Module, given: Any, output: torch.Tensor) -> None:
            key = (given[0].shape[1], output.shape[1], output.shape[2])
            found[key] = found.get(key, 0) + 1

        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(note)
        network(torch.zeros(1, 1, 224, 224))
    return found


def flops(width: float) -> float:
    """Floating-point operations of an image: its convolutions, a product and a sum each."""
    return sum(2.0 * 9 * i * o * s * s * n for (i, o, s), n in convolutions(width).items())


def markdown(here: dict[str, Any], parts: Sequence[Part]) -> str:
    """The report as tables, what did not run first."""
    gpus = "; ".join(here["gpus"]) or "no GPU"
    lines = [f"# GPU suite, {here['date']}", "", f"{gpus}; {here['cpu']}, {here['cores']} cores"]
    versions = ", ".join(f"{k} {v}" for k, v in here["packages"].items())
    lines += ["", f"{versions}; comit {here['comit']}, commit {here['commit']}", ""]
    missing = [p for p in parts if p.status != "ok"]
    rows = [(p.name, r) for p in parts for r in p.rows if "why not" in r]
    if missing or rows:
        lines += ["## What did not run, and why", ""]
        lines += [f"- {p.name}: {p.status}, {p.reason or 'not begun'}" for p in missing]
        for name, row in rows:
            about = " ".join(str(v) for k, v in row.items() if k != "why not")
            lines.append(f"- {name}, {about}: {row['why not']}")
        lines.append("")
    for part in parts:
        ran = [row for row in part.rows if "why not" not in row]
        if not ran:
            continue
        columns = list(dict.fromkeys(k for row in ran for k in row))
        lines += [f"## {part.name} ({part.seconds} s)", "", f"| {' | '.join(columns)} |"]
        lines.append("| --- " * len(columns) + "|")
        for row in ran:
            cells = (row.get(c, "") for c in columns)
            lines.append(f"| {' | '.join(_cell(c) for c in cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
