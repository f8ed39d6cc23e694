// SPDX-License-Identifier: GPL-2.0-only
/*
 * takerns: uses what is in a namespace.
 */

#include <linux/init.h>
#include <linux/module.h>

int giver_ns(void);

static int __init takerns_init(void)
{
	return giver_ns() > 0 ? 0 : -EINVAL;
}

static void __exit takerns_exit(void)
{
}

module_init(takerns_init);
module_exit(takerns_exit);

MODULE_DESCRIPTION("Uses a symbol of another module");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS(KMODCTL_GIVER);
