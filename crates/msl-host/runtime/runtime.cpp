// One object for everything that kernels are linked with. Compiled without instrumentation.
#include "checks.cpp"
#include "fibers.cpp"
