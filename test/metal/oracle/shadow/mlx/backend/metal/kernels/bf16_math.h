// Stands in for MLX's bf16_math.h, which its quantised kernels do not use.
#pragma once
