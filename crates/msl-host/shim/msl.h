// The Metal standard library, as far as compute kernels use it.
#pragma once
#include "msl_runtime.h"
#include "msl_types.h"
#include "msl_vec.h"
#include "msl_math.h"
#include "msl_atomic.h"
#include "msl_simd.h"
#include "msl_matrix.h"

namespace metal {}
namespace msl_program {}
