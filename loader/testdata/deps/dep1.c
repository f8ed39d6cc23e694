// SPDX-License-Identifier: GPL-2.0-only
#define N 1
#include "dep.h"
