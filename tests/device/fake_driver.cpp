// A libcuda.so.1 with one invented card, for tests of `nibble doctor` on machines that have none.
#include <cstddef>
#include <cstdio>

extern "C" {

int cuDriverGetVersion(int* version) {
  *version = 13010;
  return 0;
}
int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}
int cuDeviceGetName(char* name, int size, int) {
  std::snprintf(name, static_cast<std::size_t>(size), "Invented Card");
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 13   ? 1'980'000   // kHz
           : attribute == 16 ? 132         // SMs
           : attribute == 37 ? 5120        // bits of the bus
           : attribute == 38 ? 52'428'800  // L2
           : attribute == 75 ? 9           // compute capability
                             : 0;
  return 0;
}
int cuDeviceTotalMem_v2(std::size_t* bytes, int) {
  *bytes = std::size_t{80} << 30;
  return 0;
}

}  // extern "C"
