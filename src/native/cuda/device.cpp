// The CUDA device itself: what there is, which one and which stream are used, seeds, memory, time between events.
//
// Like every file of this folder part of a shared library of its own, which is loaded after libtorch_cuda and never in a run
// on the CPU; see native/build.rs and native/cuda.rs. Conventions as in guard.h.

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

// What a device is, as the Rust side lays it out.
struct gvc_properties {
  char name[256];
  size_t total_bytes;
  int major, minor, multiprocessors;
};

// How many devices there are. Not c10's count, which answers 0 for every error: here the error says which part is missing.
char* gvc_count(int* count) {
  return guarded([&] {
    const cudaError_t error = cudaGetDeviceCount(count);
    if (error == cudaSuccess) return;
    // Else the next call would report it once more.
    (void)cudaGetLastError();
    TORCH_CHECK(false, cudaGetErrorString(error));
  });
}

// The CUDA version that the driver serves, and that of the runtime: 13000 is 13.0; 0 where there is no driver.
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

// Device `index` from now on, and on it a stream of its own for all that this thread does: a graph cannot be captured on the
// default stream, and where all work is on one stream nothing has to wait for another.
char* gvc_select(int index) {
  return guarded([&] {
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(index));
    c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, index));
  });
}

// Random numbers of the current device start anew from `seed`, its offset 0; nothing is launched.
char* gvc_seed(uint64_t seed) {
  return guarded([&] {
    at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  });
}

// Waits until the current device has done all it was given.
char* gvc_synchronize() {
  return guarded([] { c10::cuda::device_synchronize(); });
}

// The most bytes of a device that tensors held at once since the last reset, and that were taken from the driver for them.
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

// What the allocator keeps and nothing uses goes back to the driver.
char* gvc_empty_cache() {
  return guarded([] {
    c10::cuda::device_synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();
  });
}

// A point in the work of the current stream, by whose distance from another time is measured. Free with gvc_free_event.
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

// Milliseconds on the device between two points, waiting for the second.
char* gvc_elapsed_ms(cudaEvent_t from, cudaEvent_t to, float* ms) {
  return guarded([&] {
    C10_CUDA_CHECK(cudaEventSynchronize(to));
    C10_CUDA_CHECK(cudaEventElapsedTime(ms, from, to));
  });
}

void gvc_free_event(cudaEvent_t event) { (void)cudaEventDestroy(event); }

}  // extern "C"
