// SPDX-License-Identifier: GPL-2.0-only
#define N 9
#include "dep.h"
