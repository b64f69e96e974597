// Stands in for kernels/cuda/platform/encode.h, without a driver to ask (runtime/tensor_map.cpp).
#pragma once
#include "platform/interface.h"
