# make demo [SCANS=folder] | test | test-long | sanitize | fuzz [RUNS=n] | bench | bench-docs | lint | bundle [TORSO=folder]
# The first call sets everything up in .venv; later calls reuse it.

VENV := .venv
TORSO ?= ../shared/data/ct-torso-nifti
PYTHON := $(VENV)/bin/python
READY := $(VENV)/ready
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
PIP := $(PYTHON) -m pip --quiet --disable-pip-version-check

.PHONY: setup demo test test-long sanitize fuzz bench bench-kernels bench-docs lint bundle

setup: $(READY)

$(VENV)/installed: constraints.txt pyproject.toml
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastmed needs Python 3.11 or newer")'
	python3 -m venv $(VENV)
	$(PIP) install -c constraints.txt torch numpy scikit-build-core cmake ninja pybind11
	touch $@

$(READY): $(VENV)/installed $(NATIVE)
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[cpu,dev]'
	touch $@

$(VENV)/bench-ready: $(READY)
	$(PIP) install -c constraints.txt matplotlib monai pytest-benchmark pytest-rerunfailures
	touch $@

# MONAI and what nnU-Net v2's resampling and export import; its full set wants torchvision.
$(VENV)/integrations-ready: $(READY)
	$(PIP) install -c constraints.txt --no-deps monai nnunetv2 acvl_utils batchgenerators \
	  batchgeneratorsv2 dynamic_network_architectures blosc2 numexpr ndindex msgpack httpx idna \
	  lazy_loader pandas python-dateutil scikit-image tifffile threadpoolctl tqdm
	touch $@

# NVIDIA's parser and builder, which need no GPU; 234 MB. Without them their tests are skipped.
$(VENV)/tensor-rt-ready: $(READY)
	case "$$(uname -sm)" in "Linux x86_64") \
	  $(PIP) install -c constraints.txt --no-deps tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings ;; esac
	touch $@

# Beside the other packages, not among them: they take an importable torchvision for a whole one.
ORACLES := build/oracles
$(ORACLES)/torchvision: $(VENV)/installed
	$(PIP) install -c constraints.txt --no-deps --upgrade --target $(ORACLES) torchvision
	touch $@

demo: $(READY)
	$(PYTHON) tools/demo.py $(if $(SCANS),--scans $(SCANS))

test: $(VENV)/integrations-ready $(VENV)/tensor-rt-ready $(ORACLES)/torchvision
	$(PYTHON) -m pytest

# What takes minutes or many gigabytes: the large op cases, and volumes of more than 2**31 voxels.
test-long: $(VENV)/integrations-ready $(VENV)/bench-ready
	$(PYTHON) -m pytest -m long

# Under AddressSanitizer and UndefinedBehaviorSanitizer: the DICOM reader on the fuzzers' corpus and mutations of it,
# and its tests; the op tests: the CPU kernels, then the CUDA kernels
# emulated on the CPU, which torch cannot trace. Torch is not built with the sanitizers, hence the libraries
# loaded first; Python leaks by design.
SANITIZED := $(CURDIR)/build/sanitize
CMAKE := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/cmake
RUNTIMES := $(foreach name,libasan.so libubsan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(name)))
SANITIZE := LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=1073741824 \
	UBSAN_OPTIONS=print_stacktrace=1 FASTMED_SANITIZED=$(SANITIZED) FASTMED_EMULATED=$(SANITIZED)/cuda_on_cpu.so \
	PYTHONPATH=tests:tests/cuda_on_cpu $(PYTHON) -m pytest -p sanitized --capture=sys

sanitize: $(READY)
	$(CMAKE) -S . -B $(SANITIZED) -G Ninja -DFASTMED_SANITIZE=ON -DFASTMED_CUDA_ON_CPU=ON \
		-DPython_EXECUTABLE="$(CURDIR)/$(PYTHON)"
	$(CMAKE) --build $(SANITIZED)
	$(SANITIZED)/replay $(MUTATIONS) tests/fuzz_corpus/*.bin
	$(SANITIZE) tests/readers/test_native_reader.py
	$(SANITIZE) tests/ops tests/cuda_on_cpu
	$(SANITIZE) -p emulated tests/ops --ignore-glob 'tests/ops/test_tracing*' --ignore tests/ops/test_result_memory.py \
		-k "not (opcheck or gradcheck or compile or export or threads)"

# The DICOM reader under libFuzzer, which comes with clang; what it finds stays in build/fuzz.
CLANG ?= clang++
RUNS ?= 1000000
MUTATIONS := 20000
FUZZED := csrc/host/fuzz/libfuzzer.cpp csrc/host/fuzz/target.cpp $(addprefix csrc/host/,header.cpp elements.cpp rle.cpp)

fuzz:
	mkdir -p build/fuzz/corpus
	$(CLANG) -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icsrc $(FUZZED) \
		-o build/fuzz/dicom
	cd build/fuzz && ./dicom -runs=$(RUNS) -max_len=4096 -print_final_stats=1 corpus $(CURDIR)/tests/fuzz_corpus

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

bench: bench-kernels
	$(PYTHON) benches/bench_read.py
	$(PYTHON) benches/bench_infer.py
	$(PYTHON) benches/bench_archive.py --scans 4 --slices 150
	$(PYTHON) benches/bench_train.py
	$(PYTHON) benches/bench_detect.py

# With MEMORY=kept, malloc keeps what is freed, for kernels and rivals alike, as in a process that has long been running.
KEPT := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864
# The gates are of ordinary memory.
KERNEL_BENCH := $(if $(filter kept,$(MEMORY)),$(KEPT)) $(PYTHON) -m pytest benches --benchmark-quiet \
	$(if $(filter kept,$(MEMORY)),--no-gates)

bench-kernels: $(VENV)/bench-ready
	mkdir -p build
	$(KERNEL_BENCH) --table build/kernel-table.md

bench-docs: $(VENV)/bench-ready
	$(KERNEL_BENCH) --table docs/kernels.md
	$(PYTHON) benches/kernel_curves.py docs/kernels.png

bundle: $(READY)
	$(PYTHON) tools/make_demo_bundle.py --torso $(TORSO)
