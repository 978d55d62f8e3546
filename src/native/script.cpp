// Not for speed: tch cannot write modules with named parameters, open a sub-module, or pass a parameter by name.
// TorchScript modules: written from source text, with real sub-modules, parameters and buffers; opened and called.

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include <c10/core/InferenceMode.h>

#include <cerrno>
#include <fstream>

#include "guard.h"

using namespace ganvae;
using torch::jit::Module;

namespace {

// Name of the description as an attribute, which stays when Python loads a module and saves it again.
constexpr char kAttribute[] = "ganvae";

// An empty module in evaluation mode.
Module fresh(const std::string& name, const std::shared_ptr<torch::jit::CompilationUnit>& unit) {
  Module module("__torch__.ganvae." + name, unit, /*shouldMangle=*/true);
  // Set by `train()` and `eval()`, in C++ and Python.
  module.register_attribute("training", c10::BoolType::get(), false);
  return module;
}

}  // namespace

extern "C" {

// A sub-module, laid out as in Rust.
struct gv_part {
  Text name, kind, methods;
};

// A tensor with its key (PART.NAME), and whether it is trained, laid out as in Rust.
struct gv_entry {
  Text key;
  const at::Tensor* value;
  bool parameter;
};

// Writes a module of class `name`: sub-modules with their own methods and tensors, the methods of the whole, and a description of it
// as the extra file `described`.
Outcome<void> gv_script_save(Text file, Text name, Text described, Text description, Text methods, List<gv_part> parts,
                             List<gv_entry> entries) {
  return guarded([&] {
    auto unit = std::make_shared<torch::jit::CompilationUnit>();
    Module whole = fresh(string(name), unit);
    for (size_t i = 0; i < parts.count; ++i) {
      const gv_part& from = parts.data[i];
      Module part = fresh(string(from.kind), unit);
      const std::string prefix = string(from.name) + ".";
      for (size_t j = 0; j < entries.count; ++j) {
        const gv_entry& entry = entries.data[j];
        const std::string key = string(entry.key);
        if (key.compare(0, prefix.size(), prefix) != 0) continue;
        // Dense and on the CPU; copied only if it is not.
        at::Tensor value = entry.value->detach().to(at::kCPU, at::kFloat).contiguous();
        value.set_requires_grad(entry.parameter);
        part.register_parameter(key.substr(prefix.size()), value, /*is_buffer=*/!entry.parameter);
      }
      part.define(string(from.methods));
      whole.register_module(string(from.name), part);
    }
    whole.define(string(methods));
    whole.register_attribute(kAttribute, c10::StringType::get(), string(description));
    // Serialized in memory first: on a full disk, libtorch's file writer throws from its destructor, which ends the process.
    std::string bytes;
    torch::jit::ExportModule(
        whole,
        [&bytes](const void* from, size_t n) {
          bytes.append(static_cast<const char*>(from), n);
          return n;
        },
        {{string(described), string(description)}});
    std::ofstream out(string(file), std::ios::binary);
    out.write(bytes.data(), bytes.size());
    out.close();
    TORCH_CHECK(out, std::strerror(errno));
  });
}

// A module of a file on a device, or its sub-module `part` if that is not empty; the caller closes it.
Outcome<void*> gv_script_open(Text file, Text part, int64_t cuda_index) {
  return guarded([&]() -> void* {
    const at::Device device = cuda_index < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, cuda_index);
    Module module = torch::jit::load(string(file), device);
    module.eval();
    if (part.count > 0) module = module.attr(string(part)).toModule();
    return new Module(module);
  });
}

Outcome<void> gv_script_close(void* module) {
  return guarded([&] { delete static_cast<Module*>(module); });
}

// Whether its `forward` has a parameter of this name.
Outcome<bool> gv_script_takes(void* module, Text parameter) {
  return guarded([&] {
    const auto& schema = static_cast<Module*>(module)->get_method("forward").function().getSchema();
    return schema.argumentIndexWithName(string(parameter)).has_value();
  });
}

// forward(x), with the parameter `on` set to true if it is not empty.
Outcome<at::Tensor*> gv_script_call(void* module, const at::Tensor* x, Text on) {
  return guarded([&] {
    torch::jit::Kwargs named;
    if (on.count > 0) named[string(on)] = true;
    c10::InferenceMode no_gradients;
    return handle(static_cast<Module*>(module)->forward({*x}, named).toTensor());
  });
}

}  // extern "C"
