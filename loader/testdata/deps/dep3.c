// SPDX-License-Identifier: GPL-2.0-only
#define N 3
#include "dep.h"
