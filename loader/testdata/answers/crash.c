// SPDX-License-Identifier: GPL-2.0-only
/*
 * crash: its init writes where nothing is, which is an oops.
 */

#include <linux/init.h>
#include <linux/module.h>

static unsigned long address = 8;
module_param(address, ulong, 0444);
MODULE_PARM_DESC(address, "where to write");

static int __init crash_init(void)
{
	*(volatile int *)address = 1;
	return 0;
}

static void __exit crash_exit(void)
{
}

module_init(crash_init);
module_exit(crash_exit);

MODULE_DESCRIPTION("Crashes");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
