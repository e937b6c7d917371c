// libFuzzer's entry: make fuzz RUNS=10000000
#include "host/fuzz/target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fastmed::host::read_as_dicom(data, size);
  return 0;
}
