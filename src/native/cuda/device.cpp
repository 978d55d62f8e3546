// CUDA devices: properties, selection, stream, seed, memory, events.
//
// Part of a separate shared library, like every file of this folder. A GPU run loads it after libtorch_cuda, a CPU run never; see
// native/build.rs and native/cuda.rs. Conventions as in guard.h.

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <iomanip>
#include <mutex>
#include <sstream>

#include "../guard.h"

using namespace ganvae;

namespace {

cudaDeviceProp properties(size_t index) {
  cudaDeviceProp found;
  C10_CUDA_CHECK(cudaGetDeviceProperties(&found, static_cast<int>(index)));
  return found;
}

}  // namespace

extern "C" {

// The CUDA versions of the driver and the runtime, laid out as in Rust: 13000 is 13.0; 0 if there is no driver.
struct gvc_versions_of {
  int driver, runtime;
};

// Peak bytes since the last reset, allocated to tensors and reserved from the driver, laid out as in Rust.
struct gvc_peak {
  int64_t held, taken;
};

// Number of devices. Not c10's count, which returns 0 on any error: this error names the missing part.
Outcome<size_t> gvc_count() {
  return guarded([]() -> size_t {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    // Clear the error, or the next call reports it again.
    if (error != cudaSuccess) (void)cudaGetLastError();
    TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error));
    return count;
  });
}

Outcome<gvc_versions_of> gvc_versions() {
  return guarded([] {
    gvc_versions_of found{};
    C10_CUDA_CHECK(cudaDriverGetVersion(&found.driver));
    C10_CUDA_CHECK(cudaRuntimeGetVersion(&found.runtime));
    return found;
  });
}

Outcome<char*> gvc_name(size_t index) {
  return guarded([&] { return strdup(properties(index).name); });
}

Outcome<char*> gvc_describe(size_t index) {
  return guarded([&] {
    const cudaDeviceProp p = properties(index);
    std::ostringstream text;
    text << p.name << ", " << std::fixed << std::setprecision(1) << p.totalGlobalMem / 1e9 << " GB, compute capability " << p.major
         << "." << p.minor << ", " << p.multiProcessorCount << " multiprocessors";
    return strdup(text.str().c_str());
  });
}

// Selects device `index` and a non-default stream on it for this thread: a graph cannot be captured on the default stream.
Outcome<void> gvc_select(size_t index) {
  return guarded([&] {
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(index));
    c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, index));
  });
}

// Seeds the current device's generator, offset 0; launches nothing.
Outcome<void> gvc_seed(uint64_t seed) {
  return guarded([&] {
    at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  });
}

// Waits until the current device has finished all work.
Outcome<void> gvc_synchronize() {
  return guarded([] { c10::cuda::device_synchronize(); });
}

Outcome<gvc_peak> gvc_peak_bytes(size_t index) {
  return guarded([&] {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(index));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return gvc_peak{stats.allocated_bytes[all].peak, stats.reserved_bytes[all].peak};
  });
}

Outcome<void> gvc_reset_peak(size_t index) {
  return guarded([&] { c10::cuda::CUDACachingAllocator::resetPeakStats(static_cast<c10::DeviceIndex>(index)); });
}

// Returns unused cached memory to the driver.
Outcome<void> gvc_empty_cache() {
  return guarded([] {
    c10::cuda::device_synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();
  });
}

// Records an event on the current stream, for timing. Free with gvc_free_event.
Outcome<cudaEvent_t> gvc_record() {
  return guarded([] {
    cudaEvent_t event;
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDefault));
    const cudaError_t error = cudaEventRecord(event, c10::cuda::getCurrentCUDAStream());
    if (error != cudaSuccess) (void)cudaEventDestroy(event);
    C10_CUDA_CHECK(error);
    return event;
  });
}

// Milliseconds on the device between two events; waits for the second.
Outcome<float> gvc_elapsed_ms(cudaEvent_t from, cudaEvent_t to) {
  return guarded([&] {
    float ms = 0;
    C10_CUDA_CHECK(cudaEventSynchronize(to));
    C10_CUDA_CHECK(cudaEventElapsedTime(&ms, from, to));
    return ms;
  });
}

Outcome<void> gvc_free_event(cudaEvent_t event) {
  return guarded([&] { (void)cudaEventDestroy(event); });
}

}  // extern "C"
