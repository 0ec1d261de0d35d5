/* Put before every file of the library that is tested: its allocations go through hook.c, which can refuse them. */
#ifdef HANDLES
#define malloc hook_malloc_kept /* handles' memory is never given back */
#else
#define malloc hook_malloc
#endif
#define calloc        hook_calloc
#define aligned_alloc hook_aligned_alloc
#define free          hook_free
#define strdup        hook_strdup
