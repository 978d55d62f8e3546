// Work captured once and replayed by a single launch. Conventions as in guard.h.

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
using ganvae::guarded;

extern "C" {

// From here to gvc_capture_end, what this thread gives to its stream is not run but written down. The stream must not be the
// default one (gvc_select). The default generator is part of the graph: each replay draws from the seed that it then has.
char* gvc_capture_begin(CUDAGraph** out) {
  return guarded([&] {
    c10::cuda::device_synchronize();
    // The graph has a pool of memory of its own: what the steps before it have left is free for it.
    c10::cuda::CUDACachingAllocator::emptyCache();
    auto graph = std::make_unique<CUDAGraph>();
    graph->register_generator_state(at::cuda::detail::getDefaultCUDAGenerator());
    graph->capture_begin();
    *out = graph.release();
  });
}

char* gvc_capture_end(CUDAGraph* graph) {
  return guarded([&] { graph->capture_end(); });
}

// Ends a capture in which something has failed. The graph is of no use and is not freed: libtorch's allocator still knows it,
// and the process is about to end.
void gvc_capture_abandon() {
  cudaGraph_t graph = nullptr;
  (void)cudaStreamEndCapture(c10::cuda::getCurrentCUDAStream(), &graph);
  (void)cudaGetLastError();
}

char* gvc_replay(CUDAGraph* graph) {
  return guarded([&] { graph->replay(); });
}

void gvc_free_graph(CUDAGraph* graph) {
  // A launch that is under way still uses the graph's memory.
  (void)cudaDeviceSynchronize();
  delete graph;
}

}  // extern "C"
