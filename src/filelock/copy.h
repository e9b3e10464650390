// Content and attributes of one file given to another. Descriptors are ordinary ones, open for
// reading or writing; nobody else modifies either file meanwhile.
//
// Holes stay holes; blocks are shared where the file system can. Marks are never copied, changed or
// removed. The calls are made as whatever the thread is.
#pragma once

#include <sys/stat.h>

#include "latchfs/result.h"

namespace latchfs::filelock {

// Into a new, empty file. EIO if the source gets shorter on the way.
Result<void> copy_content(int from, int to, off_t size);
// Over a file with any content: afterwards it has the source's. Harmless to do again.
Result<void> replace_content(int from, int to, off_t size);
// Makes sure that replace_content() will not lack space, as far as the file system can tell before:
// allocates, and changes no content. Nothing where blocks are shared instead, which is tried on an
// empty file.
Result<void> reserve_content(int empty, int from, int to, off_t size);

// Owner and group: of a new file before its content, so that it is accounted to him.
Result<void> copy_owner(int to, const struct stat& from);
// Extended attributes, ACLs among them, then mode and times. Attributes that the source has not go.
// What the file system or the system keeps for itself (security labels, IMA, ...) goes along where
// it can; user.*, trusted.*, ACLs and capabilities must.
Result<void> copy_attributes(int from, int to, const struct stat& attr);

}  // namespace latchfs::filelock
