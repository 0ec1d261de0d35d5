/* Operations that are recorded to be run again: what run.c and csrc/buffer.c tell the recording of the calling
 * thread. */
#ifndef BNB_RECORD_H
#define BNB_RECORD_H

#include "run.h"

/* Whether the calling thread records what it asks of this device. */
bool is_recording(const bnb_device *device);

/* Opens an operation that looks at its results on the CPU: while the thread records it is refused. */
bnb_status not_recording(const bnb_device *device, const char *function);

/* The steps of an operation as it runs; memory that they use is kept from then on. A step that finds no memory makes
 * the whole recording fail when it ends. */
void record_launch(bnb_device *device, const struct launch *launch, bool whole);
bool record_job(const bnb_device *device, const struct job *job, double work);

/* Whether steps of the recording write the memory, which holds something else when they run again. */
bool record_writes(const struct buffer *buffer);

/* How many steps there are, to come back to where a launch was given up; and that an operation has failed for good. */
size_t record_mark(const bnb_device *device);
void   record_return(const bnb_device *device, size_t mark);
void   record_failure(const bnb_device *device, bnb_status status);

#endif
