// SPDX-License-Identifier: GPL-2.0-only
#define N 6
#include "dep.h"
