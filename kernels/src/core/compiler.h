// compiler.h: the only macros of the project.
#pragma once

#define QH_RESTRICT __restrict__
#define QH_ALWAYS_INLINE inline __attribute__((always_inline))
