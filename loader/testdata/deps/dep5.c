// SPDX-License-Identifier: GPL-2.0-only
#define N 5
#include "dep.h"
