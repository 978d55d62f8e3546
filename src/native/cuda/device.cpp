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

#include <mutex>

#include "../guard.h"

using ganvae::guarded;

extern "C" {

// Properties of a device, laid out as in Rust.
struct gvc_properties {
  char name[256];
  size_t total_bytes;
  int major, minor, multiprocessors;
};

// Number of devices. Not c10's count, which returns 0 on any error: this error names the missing part.
char* gvc_count(int* count) {
  return guarded([&] {
    const cudaError_t error = cudaGetDeviceCount(count);
    if (error == cudaSuccess) return;
    // Clear the error, or the next call reports it again.
    (void)cudaGetLastError();
    TORCH_CHECK(false, cudaGetErrorString(error));
  });
}

// The CUDA versions of the driver and the runtime: 13000 is 13.0; 0 if there is no driver.
char* gvc_versions(int* driver, int* runtime) {
  return guarded([&] {
    C10_CUDA_CHECK(cudaDriverGetVersion(driver));
    C10_CUDA_CHECK(cudaRuntimeGetVersion(runtime));
  });
}

char* gvc_describe(int index, gvc_properties* out) {
  return guarded([&] {
    cudaDeviceProp found;
    C10_CUDA_CHECK(cudaGetDeviceProperties(&found, index));
    static_assert(sizeof found.name == sizeof out->name, "the name of a device has another length");
    std::memcpy(out->name, found.name, sizeof out->name);
    out->name[sizeof out->name - 1] = 0;
    out->total_bytes = found.totalGlobalMem;
    out->major = found.major;
    out->minor = found.minor;
    out->multiprocessors = found.multiProcessorCount;
  });
}

// Selects device `index` and a non-default stream on it for this thread: a graph cannot be captured on the default stream.
char* gvc_select(int index) {
  return guarded([&] {
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(index));
    c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, index));
  });
}

// Seeds the current device's generator, offset 0; launches nothing.
char* gvc_seed(uint64_t seed) {
  return guarded([&] {
    at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  });
}

// Waits until the current device has finished all work.
char* gvc_synchronize() {
  return guarded([] { c10::cuda::device_synchronize(); });
}

// Peak bytes since the last reset: allocated to tensors, and reserved from the driver.
char* gvc_peak_bytes(int index, int64_t* held, int64_t* taken) {
  return guarded([&] {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(index));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *held = stats.allocated_bytes[all].peak;
    *taken = stats.reserved_bytes[all].peak;
  });
}

char* gvc_reset_peak(int index) {
  return guarded([&] { c10::cuda::CUDACachingAllocator::resetPeakStats(static_cast<c10::DeviceIndex>(index)); });
}

// Returns unused cached memory to the driver.
char* gvc_empty_cache() {
  return guarded([] {
    c10::cuda::device_synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();
  });
}

// Records an event on the current stream, for timing. Free with gvc_free_event.
char* gvc_record(cudaEvent_t* out) {
  return guarded([&] {
    cudaEvent_t event;
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDefault));
    const cudaError_t error = cudaEventRecord(event, c10::cuda::getCurrentCUDAStream());
    if (error != cudaSuccess) (void)cudaEventDestroy(event);
    C10_CUDA_CHECK(error);
    *out = event;
  });
}

// Milliseconds on the device between two events; waits for the second.
char* gvc_elapsed_ms(cudaEvent_t from, cudaEvent_t to, float* ms) {
  return guarded([&] {
    C10_CUDA_CHECK(cudaEventSynchronize(to));
    C10_CUDA_CHECK(cudaEventElapsedTime(ms, from, to));
  });
}

void gvc_free_event(cudaEvent_t event) { (void)cudaEventDestroy(event); }

}  // extern "C"
