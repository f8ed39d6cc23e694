// SPDX-License-Identifier: GPL-2.0-only
/*
 * heir: uses what a proprietary module exports, and inherits its taint.
 */

#include <linux/init.h>
#include <linux/module.h>

int owned_value(void);

static int __init heir_init(void)
{
	return owned_value() > 0 ? 0 : -EINVAL;
}

static void __exit heir_exit(void)
{
}

module_init(heir_init);
module_exit(heir_exit);

MODULE_DESCRIPTION("Uses a symbol of another module");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
