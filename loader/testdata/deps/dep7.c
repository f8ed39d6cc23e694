// SPDX-License-Identifier: GPL-2.0-only
#define N 7
#include "dep.h"
