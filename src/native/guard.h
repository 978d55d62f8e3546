// Shared by all files of the shim: errors as strings, tensors as borrowed handles.
//
// Every exported function returns an `Outcome`: a value, or a message that the caller frees with gv_free. No C++ exception crosses the
// boundary. Arguments are borrowed for the call. A tensor of an outcome is a new handle, owned by the caller.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace ganvae {

// The message is nullptr on success; else there is no value. Laid out as in Rust.
template <class T>
struct Outcome {
  char* message;
  T value;
};

template <>
struct Outcome<void> {
  char* message;
};

// `count` values of the caller's, laid out as in Rust.
template <class T>
struct List {
  const T* data;
  size_t count;
};

using Tensors = List<at::Tensor*>;
using Text = List<char>;

inline std::vector<at::Tensor> list(Tensors handles) {
  std::vector<at::Tensor> out;
  out.reserve(handles.count);
  for (size_t i = 0; i < handles.count; ++i) out.push_back(*handles.data[i]);
  return out;
}

inline std::string string(Text text) { return {text.data, text.count}; }

inline std::optional<at::Tensor> optional(const at::Tensor* t) { return t ? std::optional(*t) : std::nullopt; }

inline at::Tensor* handle(at::Tensor t) { return new at::Tensor(std::move(t)); }

// Runs `body`; its value and its exception are the outcome.
template <class F, class T = std::invoke_result_t<F>>
Outcome<T> guarded(F&& body) noexcept {
  Outcome<T> out{};
  try {
    if constexpr (std::is_void_v<T>) {
      body();
    } else {
      out.value = body();
    }
  } catch (const c10::Error& e) {
    out.message = strdup(e.what_without_backtrace());
  } catch (const std::exception& e) {
    out.message = strdup(e.what());
  } catch (...) {
    out.message = strdup("an exception of unknown type");
  }
  return out;
}

}  // namespace ganvae
