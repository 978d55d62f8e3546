#include "guard.h"

extern "C" {

// Takes back a message of any of the shim's functions.
void gv_free(char* message) { std::free(message); }

}  // extern "C"
