// SPDX-License-Identifier: GPL-2.0-only
#define N 8
#include "dep.h"
