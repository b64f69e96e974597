// Replaces kernels/cuda/platform/encode.h; runtime/tensor_map.cpp encodes maps instead of the driver.
#pragma once
#include "platform/interface.h"
