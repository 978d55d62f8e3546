// The whole shim as one translation unit: libtorch's headers take most of a compilation, and so are read once.
#include "context.cpp"
#include "conv.cpp"
#include "linear.cpp"
#include "loss.cpp"
#include "norm.cpp"
#include "optim.cpp"
#include "random.cpp"
#include "script.cpp"

// Frees a message of any of the shim's functions.
extern "C" void gv_free(char* message) { std::free(message); }
