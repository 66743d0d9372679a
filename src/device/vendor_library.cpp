#include "device/vendor_library.h"

#include <dlfcn.h>
#include <link.h>

namespace nibble {

const char* VendorLibrary::FileName(Name name) {
  switch (name) {
    case Name::kCuda:
      return "libcuda.so.1";
    case Name::kNvml:
      return "libnvidia-ml.so.1";
    case Name::kCudart:
      return "libcudart.so.13";
    case Name::kCublas:
      return "libcublas.so.13";
    case Name::kCublasLt:
      return "libcublasLt.so.13";
    case Name::kCusolver:
      return "libcusolver.so.12";
    case Name::kNccl:
      return "libnccl.so.2";
  }
  return "";
}

VendorLibrary::VendorLibrary(Name name) {
  const std::string file = FileName(name);
  for (const std::string& place : {file, "/usr/local/cuda/lib64/" + file}) {
    handle_ = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) {
      link_map* map = nullptr;
      path_ = dlinfo(handle_, RTLD_DI_LINKMAP, &map) == 0 ? map->l_name : place;
      problem_.clear();
      return;
    }
    const char* error = dlerror();
    const std::string text = error == nullptr ? "" : error;
    if (problem_.empty() && text.find("No such file") == std::string::npos) {
      problem_ = text;
    }
  }
}

void* VendorLibrary::FindSymbol(const char* symbol) const {
  return handle_ == nullptr ? nullptr : dlsym(handle_, symbol);
}

}  // namespace nibble
