// Versions of glibc's symbols, so that the library loads with glibc 2.28 whatever glibc it is built with.
#pragma once

#include <cstdlib>  // __GLIBC__

// glibc 2.29 has a second pow, which differs in how it reports errors and not in its values.
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver pow, pow@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver pow, pow@GLIBC_2.17");
#endif
