// Not for speed: tch cannot write modules with named parameters.
// TorchScript modules: written from source text with real sub-modules, parameters and buffers, and read back.

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "guard.h"

using ganvae::guarded;
using torch::jit::Module;

namespace {

// Name of the description among a module's extra files, which are read without loading the module.
constexpr char kDescription[] = "ganvae.json";
// Name of the same as an attribute, which stays when Python loads a module and saves it again.
constexpr char kAttribute[] = "ganvae";

// An empty module in evaluation mode.
Module fresh(const std::string& name, const std::shared_ptr<torch::jit::CompilationUnit>& unit) {
  Module module("__torch__.ganvae." + name, unit, /*shouldMangle=*/true);
  // Set by `train()` and `eval()`, in C++ and Python.
  module.register_attribute("training", c10::BoolType::get(), false);
  return module;
}

// Writes a file and waits until it is on the disk.
void write_synced(const char* file, const std::string& bytes) {
  std::FILE* out = std::fopen(file, "wb");
  TORCH_CHECK(out != nullptr, std::strerror(errno));
  const bool whole = std::fwrite(bytes.data(), 1, bytes.size(), out) == bytes.size() && std::fflush(out) == 0 &&
      ::fsync(::fileno(out)) == 0;
  const int error = errno;
  const bool closed = std::fclose(out) == 0;
  TORCH_CHECK(whole && closed, std::strerror(whole ? errno : error));
}

}  // namespace

extern "C" {

// Writes a module of class `name`: sub-modules `parts` with their own methods, the tensors under `keys` (PART.NAME), of which
// `parameters` says which are trained, the methods of the whole, and a description of it.
char* gv_script_save(const char* file, const char* name, const char* description, const char* methods, size_t parts,
                     const char* const* part_names, const char* const* part_kinds, const char* const* part_methods,
                     size_t tensors, const char* const* keys, at::Tensor* const* values, const bool* parameters) {
  return guarded([&] {
    auto unit = std::make_shared<torch::jit::CompilationUnit>();
    Module whole = fresh(name, unit);
    for (size_t i = 0; i < parts; ++i) {
      Module part = fresh(part_kinds[i], unit);
      const std::string prefix = std::string(part_names[i]) + ".";
      for (size_t j = 0; j < tensors; ++j) {
        if (std::strncmp(keys[j], prefix.c_str(), prefix.size()) != 0) continue;
        // Dense and on the CPU; copied only if it is not.
        at::Tensor value = values[j]->detach().to(at::kCPU, at::kFloat).contiguous();
        value.set_requires_grad(parameters[j]);
        part.register_parameter(keys[j] + prefix.size(), value, /*is_buffer=*/!parameters[j]);
      }
      part.define(part_methods[i]);
      whole.register_module(part_names[i], part);
    }
    whole.define(methods);
    whole.register_attribute(kAttribute, c10::StringType::get(), std::string(description));
    // Serialized in memory first: on a full disk, libtorch's file writer throws from its destructor, which ends the process.
    std::string bytes;
    torch::jit::ExportModule(
        whole,
        [&bytes](const void* from, size_t n) {
          bytes.append(static_cast<const char*>(from), n);
          return n;
        },
        {{kDescription, description}});
    write_synced(file, bytes);
  });
}

// The description in a module's file, to be freed by the caller; null where there is none.
char* gv_script_description(const char* file, char** out) {
  return guarded([&] {
    *out = nullptr;
    caffe2::serialize::PyTorchStreamReader reader{std::string(file)};
    const std::string record = std::string("extra/") + kDescription;
    if (reader.hasRecord(record)) {
      auto [data, size] = reader.getRecord(record);
      *out = ::strndup(static_cast<const char*>(data.get()), size);
      return;
    }
    const Module module = torch::jit::load(file);
    if (!module.hasattr(kAttribute)) return;
    const c10::IValue attribute = module.attr(kAttribute);
    if (attribute.isString()) *out = ::strdup(attribute.toStringRef().c_str());
  });
}

}  // extern "C"
