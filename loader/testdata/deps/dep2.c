// SPDX-License-Identifier: GPL-2.0-only
#define N 2
#include "dep.h"
