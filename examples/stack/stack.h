/* SPDX-License-Identifier: GPL-2.0-only */
/* What the module "stack" offers to other modules. */
#ifndef KMODCTL_STACK_H
#define KMODCTL_STACK_H

int stack_push(int value);
int stack_pop(int *value);
unsigned int stack_depth(void);

#endif
