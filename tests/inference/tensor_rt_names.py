"""Every name of TensorRT's Python bindings that the engine calls, and what some versions have.

tensor_rt_names.json holds the names of the classes below in the bindings of 10.13 and 11.4, which
cannot be imported without two gigabytes of libraries. They were listed from the wheels' own
modules, with libraries that define the missing symbols and do nothing:

    pip download --no-deps tensorrt-cu13-bindings==11.4.0.106
    pip download --no-deps tensorrt-cu12-bindings==10.13.3.9.post1
    python tests/inference/tensor_rt_names.py *.whl
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LISTED = Path(__file__).with_suffix(".json")

CALLED = {
    "Builder": {
        "build_serialized_network", "create_builder_config", "create_network",
        "create_optimization_profile",
    },
    "BuilderFlag": {"TF32"},
    "DataType": {"BF16", "FLOAT", "HALF"},
    "IBuilderConfig": {
        "add_optimization_profile", "clear_flag", "create_timing_cache", "progress_monitor",
        "set_timing_cache",
    },
    "ICudaEngine": {
        "create_execution_context", "get_tensor_dtype", "get_tensor_mode", "get_tensor_name",
        "num_io_tensors",
    },
    "IExecutionContext": {
        "execute_async_v3", "get_tensor_shape", "set_input_shape", "set_tensor_address",
    },
    "IHostMemory": set(),
    "ILayer": {"get_output"},
    "ILogger": {"ERROR", "INTERNAL_ERROR", "log"},
    "INetworkDefinition": {
        "add_identity", "add_input", "get_input", "mark_output", "num_inputs", "num_outputs",
    },
    "IOptimizationProfile": {"set_shape"},
    "IProgressMonitor": {"phase_finish", "phase_start", "step_complete"},
    "ITensor": {"name", "shape"},
    "ITimingCache": {"serialize"},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "OnnxParser": {"get_error", "num_errors", "parse"},
    "ParserError": {"desc", "node_name", "node_operator"},
    "Runtime": {"deserialize_cuda_engine"},
    "TensorIOMode": {"INPUT"},
}  # fmt: skip

CALLED_OF_RTX = {
    "ComputeCapability": {"SM80", "SM86", "SM89", "SM120"},
    "CudaGraphStrategy": {"DISABLED", "WHOLE_GRAPH_CAPTURE"},
    "DynamicShapesKernelSpecializationStrategy": {"EAGER"},
    "IBuilderConfig": {"num_compute_capabilities", "set_compute_capability"},
    "ICudaEngine": {"create_runtime_config"},
    "IRuntimeCache": {"deserialize", "serialize"},
    "IRuntimeConfig": {
        "create_runtime_cache", "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy", "set_runtime_cache",
    },
}  # fmt: skip


def names_of(bindings) -> dict[str, list[str]]:
    """The public names of each class above in a module of bindings."""
    classes = sorted(CALLED.keys() | CALLED_OF_RTX.keys())
    return {
        name: [each for each in dir(getattr(bindings, name)) if not each.startswith("_")]
        for name in classes
        if hasattr(bindings, name)
    }


LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
LOOK = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import tensorrt_bindings, tensor_rt_names
print(json.dumps([tensorrt_bindings.__version__, tensor_rt_names.names_of(tensorrt_bindings)]))
"""


def list_wheel(wheel: Path) -> tuple[str, dict[str, list[str]]]:
    """A wheel's version and names, asked in a process of its own. Needs gcc, nm and readelf."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        module = Path(folder) / "tensorrt_bindings" / "tensorrt.so"
        undefined = _output("nm", "-D", "--undefined-only", module).split()
        wanted = {s for s in undefined if s.startswith(("create", "get", "init")) and "@" not in s}
        source = Path(folder) / "nothing.c"
        source.write_text("".join(f"void* {symbol}(void) {{ return 0; }}\n" for symbol in wanted))
        needed = _output("readelf", "-d", module)
        for name in LIBRARIES:
            (version,) = {n for n in ("10", "11") if f"[lib{name}.so.{n}]" in needed}
            library = module.with_name(f"lib{name}.so.{version}")
            _output("gcc", "-shared", "-fPIC", source, f"-Wl,-soname,{library.name}", "-o", library)
        answer = _output(sys.executable, "-c", LOOK, folder, Path(__file__).parent)
    version, names = json.loads(answer)
    return version, names


def _output(*command) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    listed = dict(list_wheel(Path(wheel)) for wheel in sys.argv[1:])
    lines = [
        json.dumps(version)
        + ": {\n  "
        + ",\n  ".join(f"{json.dumps(name)}: {json.dumps(names[name])}" for name in names)
        + "\n }"
        for version, names in sorted(listed.items())
    ]
    LISTED.write_text("{\n " + ",\n ".join(lines) + "\n}\n")
