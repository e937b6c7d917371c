"""The TensorRT engine builds once, keeps what it built, and takes nothing else for it.

Engines are built by TensorRT-RTX, which needs no GPU for that; where they would run, torch does.
"""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastmed import bundle, models
from fastmed.errors import BundleError, UsageError
from fastmed.inference.engines import choice, kinds, open_engine, opening, tensor_rt
from fastmed.inference.engines.protocol import EngineRefused
from fastmed.inference.engines.tensor_rt import TensorRtEngine
from fastmed.inference.engines.tensor_rt_build import check_gpu
from fastmed.inference.engines.tensor_rt_flavour import Flavour, Gpu, present_flavours

A100 = Gpu("cuda:0", "NVIDIA A100", (8, 0))


class TorchProgram:
    """Stands for a loaded engine: torch runs the network that it was built of."""

    network = None
    has_new_kernels = True

    def __init__(self, flavour, loaded, device, *, captures, kernels, say):
        self.plan, self.captures, self.kernels = loaded[1], captures, kernels

    def __call__(self, tiles):
        with torch.inference_mode():
            return TorchProgram.network(tiles)

    def compiled_kernels(self):
        return b"kernels"


class Workshop:
    """What the engine met: GPU, libraries, builds."""

    def __init__(self, rtx):
        self.gpu, self.flavours = A100, [Flavour(rtx)]
        self.builds, self.checks, self.programs = [], [], []
        self.loads = lambda plan: plan.startswith(b"vtrt")


@pytest.fixture
def workshop(monkeypatch, tmp_path):
    made = Workshop(pytest.importorskip("tensorrt_rtx_bindings"))
    build = tensor_rt.build

    def counted(target, profile, say, cache):
        made.builds.append(profile)
        return build(target, profile, say, cache)

    def program(*arguments, **keywords):
        made.programs.append(TorchProgram(*arguments, **keywords))
        return made.programs[-1]

    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(Gpu, "of", classmethod(lambda cls, device: made.gpu))
    monkeypatch.setattr(tensor_rt, "present_flavours", lambda: made.flavours)
    monkeypatch.setattr(tensor_rt, "check_gpu", lambda *given: made.checks.append(given))
    monkeypatch.setattr(tensor_rt, "build", counted)
    monkeypatch.setattr(tensor_rt, "Program", program)
    monkeypatch.setattr(
        tensor_rt, "deserialised", lambda _, plan: (None, plan) if made.loads(plan) else None
    )
    return made


@pytest.fixture
def read(tiny_bundle):
    TorchProgram.network = bundle.read(tiny_bundle).network()
    return bundle.read(tiny_bundle)


@pytest.fixture
def opened(read, workshop):
    """Returns a function that opens the engine as a new process would."""
    said = []

    def open_again():
        engine = TensorRtEngine(read, "cuda:0")
        engine.say = said.append
        return engine

    open_again.said = said
    return open_again


TILE = torch.rand(2, 1, 32, 32, 32)


def files(tmp_path, kind, ending):
    return sorted((tmp_path / "cache").glob(f"{kind}-*{ending}"))


def test_it_gives_the_networks_logits(opened, read):
    assert torch.equal(opened()(TILE), TorchProgram.network(TILE))


def test_the_second_start_builds_nothing(opened, workshop):
    opened()(TILE)
    opened()(TILE)
    assert len(workshop.builds) == len(workshop.checks) == 1
    assert [program.kernels for program in workshop.programs] == [b"", b"kernels"]
    assert workshop.programs[0].plan == workshop.programs[1].plan
    assert "once for this GPU" in opened.said[0]


def test_the_tile_is_captured_and_other_shapes_share_one_engine(opened, workshop):
    engine = opened()
    for shape in ((2, 32, 32, 32), (1, 16, 32, 32), (3, 32, 16, 16), (2, 32, 32, 32)):
        assert engine(torch.rand(shape[0], 1, *shape[1:])).shape == (shape[0], 2, *shape[1:])
    assert [program.captures for program in workshop.programs] == [True, False]
    assert [profile.is_static for profile in workshop.builds] == [True, False]


def test_one_more_tile_at_once_replaces_the_fixed_engine(opened, workshop):
    engine = opened()
    engine(TILE[:1])
    engine(TILE)
    assert [profile.usual[0] for profile in workshop.builds] == [1, 2]


def damaged(path):
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize("ending", [".bin", ".json"])
def test_a_damaged_engine_is_built_again(opened, workshop, tmp_path, ending):
    opened()(TILE)
    (path,) = files(tmp_path, "engine", ending)
    damaged(path)
    opened()(TILE)
    opened()(TILE)
    assert len(workshop.builds) == 2


def test_an_engine_that_does_not_load_is_built_again(opened, workshop):
    opened()(TILE)
    answers = iter([False, True])
    workshop.loads = lambda plan: next(answers)
    opened()(TILE)
    assert len(workshop.builds) == 2


def test_another_gpu_has_another_engine(opened, workshop):
    opened()(TILE)
    workshop.gpu = Gpu("cuda:0", "NVIDIA A10", (8, 6))
    opened()(TILE)
    workshop.gpu = A100
    opened()(TILE)
    assert len(workshop.builds) == 2


def test_an_engine_that_never_loads_is_an_error_and_built_once(opened, workshop, tmp_path):
    workshop.loads = lambda plan: False
    engine = opened()
    for _ in range(2):
        with pytest.raises(BundleError, match=r"cannot load the engine .* --engine torch runs it"):
            engine(TILE)
    assert len(workshop.builds) == 1
    assert files(tmp_path, "engine", ".bin") == []


def test_a_cache_that_cannot_be_written_costs_a_build_and_nothing_else(opened, workshop, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    for _ in range(2):
        assert torch.equal(opened()(TILE), TorchProgram.network(TILE))
    assert len(workshop.builds) == 2
    assert any("FASTMED_CACHE" in sentence for sentence in opened.said)


def test_an_onnx_of_other_weights_is_refused(read, workshop, tiny_spec, tmp_path):
    folder = tmp_path / "b"
    shutil.copytree(read.path, folder)
    content = read.onnx_path().read_bytes()
    bundle.write(folder, tiny_spec, models.build("unet3d", base_channels=8))
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model.onnx was exported from other weights"):
        TensorRtEngine(bundle.read(folder), "cuda:0")


def test_a_precision_is_the_file_of_its_name(read, workshop, tmp_path):
    shutil.copytree(read.path, tmp_path / "b")
    (tmp_path / "b" / "model.onnx").rename(tmp_path / "b" / "model.fp16.onnx")
    moved = bundle.read(tmp_path / "b")
    engine = TensorRtEngine(moved, "cuda:0", "fp16")
    assert engine(TILE).shape == (2, 2, 32, 32, 32)
    assert engine.precision == "fp16"
    assert TensorRtEngine.lacks(moved, "cuda:0", "fp16") == ""
    assert "has no model.onnx; fastmed export" in TensorRtEngine.lacks(moved, "cuda:0", "fp32")


def test_a_gpu_that_no_library_takes_is_refused_with_what_each_says(read, workshop):
    workshop.gpu = Gpu("cuda:0", "NVIDIA H200", (9, 0))
    workshop.flavours *= 2
    with pytest.raises(EngineRefused) as caught:
        TensorRtEngine(read, "cuda:0")
    assert str(caught.value).count("refuses NVIDIA H200 (compute capability 9.0)") == 2


def test_a_library_that_refuses_leaves_the_gpu_to_the_next(read, workshop, monkeypatch):
    first, second = workshop.flavours[0], replace(workshop.flavours[0])

    def check(flavour, gpu):
        workshop.checks.append(flavour)
        if flavour is first:
            raise EngineRefused(f"{flavour} refuses {gpu}: too new")

    monkeypatch.setattr(tensor_rt, "check_gpu", check)
    workshop.flavours = [first, second]
    TensorRtEngine(read, "cuda:0")
    assert [flavour is second for flavour in workshop.checks] == [False, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_driver_the_gpu_is_refused_in_nvidias_words():
    rtx = pytest.importorskip("tensorrt_rtx_bindings")
    with pytest.raises(EngineRefused, match=r"refuses NVIDIA A100 .*: .*CUDA driver.*pip install"):
        check_gpu(Flavour(rtx), A100)


def test_a_library_that_cannot_be_imported_is_named(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("fastmed.inference.engines.tensor_rt_flavour.MODULES", ("tensorrt",))
    with pytest.raises(EngineRefused, match=r"tensorrt cannot be imported \(libnvinfer.so.11 is"):
        present_flavours()


def test_a_library_that_is_too_old_is_named():
    flavour = Flavour(SimpleNamespace(__version__="10.4.0"))
    assert flavour.why_not(A100) == (
        "TensorRT 10.4.0 is older than 10.13; pip install 'tensorrt>=10.13'"
    )


def test_on_the_cpu_it_says_that_it_needs_cuda(read):
    with pytest.raises(UsageError, match=r"--engine trt: runs on cuda, not on cpu"):
        open_engine(read, "trt", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda_it_says_which_torch_sees_none(read):
    with pytest.raises(UsageError, match=r"--engine trt: .*; torch .* sees no CUDA device"):
        open_engine(read, "trt")


@pytest.fixture
def on_cuda(monkeypatch):
    """A machine with a CUDA device, torch and TensorRT, as far as opening an engine asks."""
    monkeypatch.setitem(kinds.KINDS, "ort", replace(kinds.KINDS["ort"], devices=("cpu",)))
    monkeypatch.setattr(opening, "device_of", lambda device: "cuda:0")
    monkeypatch.setattr(kinds.Kind, "module", property(lambda kind: kind.modules[0]))


def with_builds(monkeypatch, **builds):
    for name, build in builds.items():
        build.lacks = lambda *_: ""
        monkeypatch.setitem(kinds.KINDS, name, replace(kinds.KINDS[name], engine=build))


def refusing(*_):
    raise EngineRefused("TensorRT 12.0 refuses Old GPU (compute capability 6.1)")


def like(name, seconds):
    """What builds an engine that takes so long for a tile."""

    def build(*_):
        class Like:
            def __call__(self, tiles):
                return torch.ones(1, 2, 4, 4, 4)

        engine = Like()
        engine.name, engine.seconds = name, seconds
        return engine

    return build


@pytest.fixture
def timed(monkeypatch):
    """Engines say themselves how long they take, for a tile that lies on no GPU."""
    monkeypatch.setattr(choice, "_seconds", lambda engine, tile: engine.seconds)
    monkeypatch.setattr(choice, "example_tiles", lambda spec, device: torch.zeros(1))
    monkeypatch.setattr(choice, "machine", lambda device: {})


@pytest.mark.parametrize(("seconds", "taken"), [(0.1, "trt"), (0.3, "torch"), (0.2, "trt")])
def test_auto_takes_the_faster_on_cuda(read, on_cuda, timed, monkeypatch, tmp_path, seconds, taken):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path))
    with_builds(monkeypatch, trt=like("trt", seconds), torch=like("torch", 0.2))
    engine, sentence = open_engine(read)
    assert engine.name == taken
    figures = f"the fastest on its tile: trt {seconds} s, torch 0.2 s"
    assert sentence == f"engine {taken} on cuda:0 ({figures})"


def test_auto_goes_on_where_it_refuses_and_says_why(read, on_cuda, timed, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path))
    with_builds(monkeypatch, trt=refusing, torch=like("torch", 0.2))
    engine, sentence = open_engine(read)
    assert engine.name == "torch"
    refusal = "trt: TensorRT 12.0 refuses Old GPU (compute capability 6.1)"
    assert sentence == f"engine torch on cuda:0 (the fastest on its tile: torch 0.2 s; {refusal})"


def test_the_choice_names_the_library(read, on_cuda, workshop):
    library = str(workshop.flavours[0])
    assert open_engine(read, "trt")[1] == f"engine trt ({library}) on cuda:0, as asked"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_who_has_no_gpu_is_not_told_to_install_it(monkeypatch):
    monkeypatch.setattr(kinds.Kind, "module", "")
    assert kinds.survey()[0] == ("trt", "absent", "")


def test_named_it_is_never_replaced_where_it_refuses(read, on_cuda, monkeypatch):
    with_builds(monkeypatch, trt=refusing)
    with pytest.raises(UsageError, match=r"--engine trt: TensorRT 12.0 refuses Old GPU"):
        open_engine(read, "trt")


def test_absent_it_names_the_command_that_installs_it(read, on_cuda, monkeypatch):
    monkeypatch.setattr(kinds.Kind, "module", "")
    with pytest.raises(UsageError, match=r"--engine trt: not .*; pip install tensorrt-cu1\d$"):
        open_engine(read, "trt")
