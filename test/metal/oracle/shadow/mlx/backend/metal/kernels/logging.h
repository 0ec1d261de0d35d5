// Stands in for MLX's logging.h, which its quantised kernels do not use.
#pragma once
