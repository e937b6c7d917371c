"""TensorRT as an engine: the fastest on NVIDIA GPUs, once it has built what it runs."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fastmed.bundle import Bundle
from fastmed.cache_folder import cache_folder
from fastmed.errors import BundleError
from fastmed.inference.engines.engine_cache import EngineCache, Entry
from fastmed.inference.engines.onnx_file import OnnxFile, missing_file, open_onnx
from fastmed.inference.engines.protocol import EngineRefused, TileEngine
from fastmed.inference.engines.tensor_rt_build import (
    Target,
    build,
    check_gpu,
    check_network,
    deserialised,
)
from fastmed.inference.engines.tensor_rt_flavour import Gpu, present_flavours
from fastmed.inference.engines.tensor_rt_profile import Profile, ProfileChooser
from fastmed.inference.engines.tensor_rt_program import Program


class TensorRtEngine(TileEngine):
    """TensorRT or TensorRT-RTX on a CUDA device, in the precision of the ONNX file's weights.

    Tiles of the spec's size run in a network built for that one shape, as a CUDA graph; others in
    one for a range of shapes. Each is built at its first call, which takes minutes with TensorRT,
    and kept in the user's cache folder.

    library: which of the two it is, and its version.

    Raises EngineRefused where no library that is present takes the GPU or the network, BundleError
    for a damaged file.
    """

    name = "trt"

    @staticmethod
    def lacks(bundle: Bundle, device: str, precision: str) -> str:
        return missing_file(bundle, _file(precision))

    def __init__(self, bundle: Bundle, device: str, precision: str = "fp32"):
        super().__init__(bundle.spec, device, precision)
        onnx = open_onnx(bundle, _file(precision))
        self._cache = EngineCache(cache_folder("engines"))
        self._channels = onnx.channels
        with torch.cuda.device(device):
            self._target = accepted(onnx, Gpu.of(device), self._cache)
        self.library = str(self._target.flavour)
        self._chooser = ProfileChooser(bundle.spec, onnx.image.axes)
        self._programs: dict[bool, tuple[Profile, Program]] = {}  # by whether of one shape
        self._failures: dict[Profile, BundleError] = {}

    def _run(self, tiles: Tensor) -> Tensor:
        profile = self._chooser.choose(tuple(tiles.shape))
        with torch.cuda.device(self.device):
            known, program = self._programs.get(profile.is_static, (None, None))
            if known != profile:
                if program is not None:
                    torch.cuda.synchronize()  # it may be at work, and its memory is needed
                    del program, self._programs[profile.is_static]
                program = self._program(profile)
                self._programs[profile.is_static] = (profile, program)
            logits = program(tiles)
            if program.has_new_kernels:
                self._cache.write(self._kernels_entry(profile), program.compiled_kernels())
            return logits

    def _program(self, profile: Profile) -> Program:
        """The program of a profile, from the cache if what lies there can be loaded."""
        if profile in self._failures:  # known after minutes of building
            raise self._failures[profile]
        target, entry = self._target, self._target.entry(profile)
        plan = self._cache.read(entry)
        loaded = None if plan is None else deserialised(target.flavour, plan)
        try:
            if loaded is None:
                loaded = self._built(profile, entry)
        except BundleError as error:
            self._failures[profile] = error
            raise
        return Program(
            target.flavour,
            loaded,
            self.device,
            captures=profile.is_static,
            kernels=self._cache.read(self._kernels_entry(profile)) or b"",
            say=self.say,
        )

    def _built(self, profile: Profile, entry: Entry):
        target = self._target
        self._cache.forget(entry)
        self.say(f"{target.flavour} builds an engine for tiles {profile}, once for this GPU")
        started = time.monotonic()
        plan = build(target, profile, self.say, self._cache)
        seconds = round(time.monotonic() - started, 1)
        if problem := self._cache.write(entry, plan, seconds_to_build=seconds):
            self.say(problem)
        self.say(f"{target.flavour} has built it in {seconds:.0f} s")
        loaded = deserialised(target.flavour, plan)
        if loaded is None:
            self._cache.forget(entry)
            raise BundleError(
                f"{target.onnx.path}: {target.flavour} cannot load the engine that it has built on "
                f"{target.gpu}: {target.flavour.log.take()}; --engine torch runs it"
            )
        return loaded

    def _kernels_entry(self, profile: Profile) -> Entry:
        return Entry("kernels", self._target.entry(profile).facts)


def accepted(onnx: OnnxFile, gpu: Gpu, cache: EngineCache) -> Target:
    """The first library that takes a network and a GPU; once it has, that is not asked again.

    Raises EngineRefused with what each library says.
    """
    refusals = []
    for flavour in present_flavours():
        if reason := flavour.why_not(gpu):
            refusals.append(reason)
            continue
        target = Target(onnx, flavour, gpu)
        if cache.read(target.accepted_entry()) is not None:
            return target
        try:
            check_gpu(flavour, gpu)
            check_network(target)
        except EngineRefused as error:
            refusals.append(str(error))
            continue
        cache.write(target.accepted_entry(), b"")
        return target
    raise EngineRefused("; ".join(refusals))


def _file(precision: str) -> str:
    """TensorRT takes 8 bits about zero alone."""
    return "int8-trt" if precision == "int8" else precision
