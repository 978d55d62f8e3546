// The shim as one translation unit, so that libtorch's headers, which take most of the compile time, are read once.
#include "context.cpp"
#include "conv.cpp"
#include "gather.cpp"
#include "linear.cpp"
#include "loss.cpp"
#include "norm.cpp"
#include "optim.cpp"
#include "random.cpp"
#include "script.cpp"

// Frees an error message of the shim.
extern "C" void gv_free(char* message) { std::free(message); }
