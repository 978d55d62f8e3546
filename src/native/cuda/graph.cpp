// CUDA graphs: capture and replay. Conventions as in guard.h.

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <memory>

#include "../guard.h"

using at::cuda::CUDAGraph;
using namespace ganvae;

extern "C" {

// Until gvc_capture_end, work on this thread's stream is captured, not run. The stream must not be the default one (gvc_select).
// The default generator is registered with the graph: each replay uses its current seed.
Outcome<CUDAGraph*> gvc_capture_begin() {
  return guarded([] {
    c10::cuda::device_synchronize();
    // The graph has its own memory pool: free the memory that earlier steps have left.
    c10::cuda::CUDACachingAllocator::emptyCache();
    auto graph = std::make_unique<CUDAGraph>();
    graph->register_generator_state(at::cuda::detail::getDefaultCUDAGenerator());
    graph->capture_begin();
    return graph.release();
  });
}

Outcome<void> gvc_capture_end(CUDAGraph* graph) {
  return guarded([&] { graph->capture_end(); });
}

// Ends a failed capture. The graph is not freed: libtorch's allocator still refers to it, and the process is about to end.
Outcome<void> gvc_capture_abandon() {
  return guarded([] {
    cudaGraph_t graph = nullptr;
    (void)cudaStreamEndCapture(c10::cuda::getCurrentCUDAStream(), &graph);
    (void)cudaGetLastError();
  });
}

Outcome<void> gvc_replay(CUDAGraph* graph) {
  return guarded([&] { graph->replay(); });
}

Outcome<void> gvc_free_graph(CUDAGraph* graph) {
  return guarded([&] {
    // A running replay still uses the graph's memory.
    (void)cudaDeviceSynchronize();
    delete graph;
  });
}

}  // extern "C"
