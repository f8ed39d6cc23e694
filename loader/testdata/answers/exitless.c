// SPDX-License-Identifier: GPL-2.0-only
/*
 * exitless: no exit function, so the kernel never removes it again.
 */

#include <linux/init.h>
#include <linux/module.h>

static int __init exitless_init(void)
{
	return 0;
}

module_init(exitless_init);

MODULE_DESCRIPTION("Cannot be removed");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
