"""FP16 ONNX to a TensorRT engine: one code path for TensorRT 10.16, 11 and TensorRT for RTX.

Precision lives in the ONNX file. Networks are strongly typed, by flag where the version still has
one, so TensorRT may not compute a float16 convolution in float32; that it does not is checked on
the network it parsed and on the engine it made. Builder flags for FP16 are gone in version 11, and
a program that relied on them ran in float32 in silence (rf-detr#1453).

An engine belongs to the TensorRT, the GPU and the driver that made it. The file says which, so a
mismatch is one clear line; TensorRT reads it only after its sha256 was checked.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from comit import modelfile
from comit.card import sha256
from comit.engine.base import IMAGE, Progress, ignore
from comit.engine.cache import CACHE, publish, read
from comit.errors import MissingExtra, ModelError, UsageError

# The first that is here: they have one API, but TensorRT for RTX has no code for Hopper (sm_90).
PACKAGES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
MAGIC = b"comit engine 1\n"
SMALL = 8  # images: batches up to this have a profile of their own, tuned for one image
EVERY = 5.0  # seconds between lines of a phase that goes on


@dataclass(frozen=True)
class Options:
    """How an engine is built."""

    batch_size: int = 64  # the largest batch, and the one the large profile is tuned for
    level: int = 3  # TensorRT's builder optimisation level, 0 to 5: time spent looking for kernels

    def profiles(self) -> tuple[tuple[int, int, int], ...]:
        """(least, usual, most) images of each optimisation profile."""
        small = (1, 1, min(SMALL, self.batch_size))
        large = (1, self.batch_size, self.batch_size)
        return (small,) if self.batch_size <= SMALL else (small, large)


@dataclass(frozen=True)
class Machine:
    """What an engine is tied to."""

    tensorrt: str  # the package: tensorrt or tensorrt_rtx
    version: str
    gpu: str  # name and compute capability; "" where there was none (TensorRT for RTX alone)
    cuda: int  # the driver's: 13000 is 13.0; 0 without one


@dataclass(frozen=True)
class About:
    """What the engine in a file is: the line before it."""

    machine: Machine
    options: Options
    onnx: str  # sha256 of the model file it was made of
    precision: str  # fp16 or fp32
    plan: str = ""  # sha256 of the engine itself

    def key(self) -> str:
        """Names this engine among all in a cache."""
        return _digest(asdict(self) | {"plan": ""})


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def find_tensorrt() -> str | None:
    """The name of the package that would be imported; None where there is none."""
    return next((name for name in PACKAGES if find_spec(name)), None)


def import_tensorrt() -> Any:
    """TensorRT's module; raises MissingExtra, or UsageError where its libraries do not load."""
    name = find_tensorrt()
    if name is None:
        raise MissingExtra("TensorRT", "gpu")
    try:
        return import_module(name)
    except Exception as error:  # ImportError, and what its loader of libraries raises
        raise UsageError(f"{name} is installed but does not load: {error}") from error


def this_machine(trt: Any, gpu: str = "", cuda: int = 0) -> Machine:
    """What an engine made here is tied to."""
    return Machine(trt.__name__.removesuffix("_bindings"), trt.__version__, gpu, cuda)


def pack(about: About, plan: bytes) -> bytes:
    """The content of an engine file."""
    line = json.dumps(asdict(about) | {"plan": sha256(plan)})
    return MAGIC + line.encode() + b"\n" + plan


def unpack(content: bytes) -> tuple[About, bytes]:
    """What :func:`pack` was given; raises ModelError where the file is damaged."""
    head, _, plan = content.removeprefix(MAGIC).partition(b"\n")
    try:
        raw = json.loads(head)
        machine, options = Machine(**raw.pop("machine")), Options(**raw.pop("options"))
        about = About(machine=machine, options=options, **raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError("the engine file is not one of comit's, or is damaged") from error
    if not content.startswith(MAGIC) or sha256(plan) != about.plan:
        raise ModelError("the engine file is not one of comit's, or is damaged")
    return about, plan


def check_machine(about: About, here: Machine) -> None:
    """Raises UsageError, one line, where an engine was made for something else."""
    made = about.machine
    pairs = {
        f"{made.tensorrt} {made.version}": f"{here.tensorrt} {here.version}",
        made.gpu: here.gpu if made.gpu else "",
        f"CUDA {made.cuda // 1000}": f"CUDA {here.cuda // 1000}" if made.cuda else "CUDA 0",
    }
    for there, now in pairs.items():
        if there != now:
            raise UsageError(
                f"the engine was made for {there}, here is {now or 'no GPU'}: export it again"
            )


def build(
    trt: Any,
    onnx: bytes,
    options: Options | None = None,
    timing: bytes = b"",
    progress: Progress = ignore,
) -> tuple[bytes, bytes]:
    """(engine, timing cache) of an ONNX file; seconds to minutes.

    ``timing`` is a cache an earlier build gave; TensorRT for RTX has none. Needs a GPU, but for
    TensorRT for RTX, which builds for every GPU it knows. Raises ModelError, UsageError.
    """
    modelfile.check(onnx)
    options, log = options or Options(), logger(trt)
    builder = trt.Builder(log)
    flags = trt.NetworkDefinitionCreationFlag
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors)
        raise ModelError(f"TensorRT cannot read the model file: {said}")
    check_network(trt, network)
    config = builder.create_builder_config()
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else layers tell no types
    if hasattr(trt.BuilderFlag, "TF32"):  # float32 files are the reference
        config.clear_flag(trt.BuilderFlag.TF32)
    for least, usual, most in options.profiles():
        profile = builder.create_optimization_profile()
        profile.set_shape("images", *((n, *IMAGE) for n in (least, usual, most)))
        config.add_optimization_profile(profile)
    cache = None
    if not is_rtx(trt):
        cache = config.create_timing_cache(timing)
        config.set_timing_cache(cache, ignore_mismatch=False)
    config.progress_monitor = monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UsageError(f"TensorRT built no engine: {log.last or 'it does not say why'}")
    return bytes(plan), bytes(cache.serialize()) if cache is not None else b""


def is_rtx(trt: Any) -> bool:
    """Whether this is TensorRT for RTX."""
    return "rtx" in trt.__name__


def machine_for(trt: Any, device: str) -> Machine:
    """What an engine for ``device`` is tied to; TensorRT for RTX does without a GPU."""
    from comit.engine import gpu_present
    from comit.engine.gpu.pycuda_device import PycudaDevice

    if is_rtx(trt) and not gpu_present():
        return this_machine(trt)
    return this_machine(trt, *PycudaDevice(device).describe())


def cached(
    trt: Any,
    onnx: bytes,
    options: Options,
    machine: Machine,
    precision: str = "fp16",
    cache: Path = CACHE,
    progress: Progress = ignore,
) -> tuple[About, bytes]:
    """The engine of ``onnx`` for ``machine``: from the cache, else built and kept there.

    ``precision`` fp16 takes an fp32 file too, see :func:`as_fp16`; fp32 takes no other.
    """
    about = About(machine, options, sha256(onnx), precision)
    path = cache / "engines" / f"{about.key()}.engine"
    kept, gpu = read(path), machine.gpu or "any GPU"
    if kept is not None:
        progress(f"the engine for {gpu} was built before")
        return unpack(kept)
    timings = (
        cache / "engines" / f"{hashlib.sha256(repr(machine).encode()).hexdigest()[:32]}.timing"
    )
    progress(f"building the engine for {gpu}: minutes, once; it is kept in {cache}")
    started = time.monotonic()
    if precision == "fp16":
        onnx = as_fp16(onnx)
    elif precision_of(onnx) != precision:
        raise UsageError(f"the model file is {precision_of(onnx)}: give one that is {precision}")
    plan, timing = build(trt, onnx, options, read(timings) or b"", progress)
    progress(f"built in {time.monotonic() - started:.0f} s")
    content = pack(about, plan)
    publish(path, content)
    if timing:
        publish(timings, timing)
    return unpack(content)


def precision_of(onnx: bytes) -> str:
    """The precision that ``comit export onnx`` noted in a model file; raises ModelError."""
    noted = modelfile.metadata(onnx).get("precision")
    if noted not in ("fp16", "fp32"):
        raise ModelError("the model file does not say its precision; export it again")
    return noted


def as_fp16(onnx: bytes) -> bytes:
    """An fp16 model file of the same network, exported anew where this one is fp32.

    Raises UsageError where PyTorch, which exports, is not here.
    """
    if precision_of(onnx) == "fp16":
        return onnx
    try:
        from comit.model.stored import load_network, to_bytes
    except ModuleNotFoundError as error:
        raise UsageError(
            "tensorrt takes precision from the model file and this one is fp32: run `comit export "
            f"onnx --precision fp16` where comit[train] is ({error.name} is not here), or choose "
            "--precision fp32"
        ) from error
    return to_bytes(load_network(onnx), "fp16", modelfile.metadata(onnx).get("name", ""))


def check_network(trt: Any, network: Any) -> None:
    """Raises ModelError where a convolution of an fp16 file is typed float32 (before building)."""
    if network.get_input(0).dtype != trt.DataType.HALF:
        return
    layers = (network.get_layer(i) for i in range(network.num_layers))
    convolutions = [x for x in layers if x.type == trt.LayerType.CONVOLUTION]
    wrong = [x.name for x in convolutions if x.get_input(0).dtype != trt.DataType.HALF]
    if wrong or not convolutions:
        raise ModelError(
            f"{len(wrong)} of {len(convolutions)} convolutions of the fp16 file are not float16"
        )


def check_layers(layers: str, precision: str) -> int:
    """Convolutions that the engine inspector's JSON shows; raises ModelError for float32 in fp16.

    Types are words of "Format/Datatype" (Half; Channel major FP16 format ...) of the first input
    and of "Type" of the weights. 0 where the inspector names no convolution, as it does where
    several layers became one kernel: then this check says nothing.
    """
    found = 0
    for name, types in _convolutions(json.loads(layers)):
        found += 1
        if precision == "fp16" and any("float" in t or "fp32" in t for t in types):
            raise ModelError(
                f"the fp16 engine computes {name} in float32 ({', '.join(types)}); it would be "
                f"several times slower than it should: report this with the TensorRT version"
            )
    return found


def _convolutions(information: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for layer in information.get("Layers", []):
        if not isinstance(layer, dict):  # a name alone: the engine was built to tell no more
            continue
        kinds = (layer.get("LayerType"), layer.get("ParameterType"))
        if not any("convolution" in str(kind).lower() for kind in kinds):
            continue
        inputs, weights = layer.get("Inputs") or [], layer.get("Weights")
        types = [str(i.get("Format/Datatype", "")).lower() for i in inputs[:1]]
        if isinstance(weights, dict):
            types.append(str(weights.get("Type", "")).lower())
        yield str(layer.get("Name")), types


def logger(trt: Any) -> Any:
    """A TensorRT logger that prints nothing and keeps the last error."""

    class Log(trt.ILogger):  # type: ignore[misc]  # only known at run time
        last = ""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.last = message.strip().splitlines()[0]

    return Log()


def monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's progress: a line for each of its larger phases, more where one goes on."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # only known at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._said = time.monotonic()

        def _say(self, line: str) -> None:
            self._said = time.monotonic()
            progress(line)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            if steps > 1:
                self._say(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            if time.monotonic() - self._said >= EVERY:
                self._say(f"{phase}: {step + 1} of {self._steps[phase]}")
            return True

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()
