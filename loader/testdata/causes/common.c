// SPDX-License-Identifier: GPL-2.0-only
/*
 * common: leaves it to a linker to place a variable; the kernel is none.
 */

#include <linux/init.h>
#include <linux/module.h>

int common_data;

static int __init common_init(void)
{
	return common_data;
}

static void __exit common_exit(void)
{
}

module_init(common_init);
module_exit(common_exit);

MODULE_DESCRIPTION("Cannot be placed");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
