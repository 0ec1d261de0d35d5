/* Put before every file of the library that is tested: its allocations go through hook.c, which can refuse them. */
#define malloc        hook_malloc
#define calloc        hook_calloc
#define aligned_alloc hook_aligned_alloc
#define free          hook_free
