// libfuse's low-level API, in the one version this and the room above are written for.
#pragma once

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
