#pragma once
#include "tests/cuda_emulation/cuda_runtime.h"
