// Shared by all files of the shim: errors as strings, tensors as borrowed handles.
//
// Every exported function returns nullptr on success, else a message that the caller frees with gv_free: no C++ exception crosses
// the boundary. Input tensors are borrowed. An output tensor (an `at::Tensor**`) is a new handle, owned by the caller.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

namespace ganvae {

inline std::vector<at::Tensor> list(at::Tensor* const* handles, size_t n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; ++i) out.push_back(*handles[i]);
  return out;
}

template <class F>
char* guarded(F&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception& e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("an exception of unknown type");
  }
}

}  // namespace ganvae
