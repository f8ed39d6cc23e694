// SPDX-License-Identifier: GPL-2.0-only
#define N 4
#include "dep.h"
