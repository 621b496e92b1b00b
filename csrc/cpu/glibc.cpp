// A symbol of glibc 2.32 that std::shared_ptr reads; with one of its own the library loads with glibc 2.28, too.
#include <cstdlib>  // __GLIBC__

#if defined(__GLIBC__)
// 0: there may be several threads, so references are always counted atomically.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
#endif
