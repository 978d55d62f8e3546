// Runs a TorchScript module as any C++ program would: run_module MODULE.pt OUT INPUT.pt ... writes OUT0.pt, OUT1.pt, ...
#include <torch/script.h>
#include <torch/serialize.h>

#include <iostream>

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  try {
    torch::jit::Module module = torch::jit::load(argv[1]);
    std::vector<torch::IValue> inputs;
    for (int i = 3; i < argc; ++i) {
      torch::Tensor x;
      torch::load(x, argv[i]);
      inputs.push_back(x);
    }
    torch::NoGradGuard no_grad;
    const torch::IValue y = module.forward(inputs);
    std::vector<torch::Tensor> outputs;
    if (y.isTuple()) {
      for (const auto& each : y.toTupleRef().elements()) outputs.push_back(each.toTensor());
    } else {
      outputs.push_back(y.toTensor());
    }
    for (size_t i = 0; i < outputs.size(); ++i) torch::save(outputs[i], argv[2] + std::to_string(i) + ".pt");
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return 1;
  }
}
