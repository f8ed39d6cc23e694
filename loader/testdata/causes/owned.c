// SPDX-License-Identifier: GPL-2.0-only
/*
 * owned: says of itself that it is proprietary.
 */

#include <linux/init.h>
#include <linux/module.h>

int owned_value(void);

int owned_value(void)
{
	return 1;
}
EXPORT_SYMBOL(owned_value);

static int __init owned_init(void)
{
	return 0;
}

static void __exit owned_exit(void)
{
}

module_init(owned_init);
module_exit(owned_exit);

MODULE_DESCRIPTION("Taints the kernel");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("Proprietary");
