// SPDX-License-Identifier: GPL-2.0-only
#define N 0
#include "dep.h"
