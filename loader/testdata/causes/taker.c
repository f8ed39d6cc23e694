// SPDX-License-Identifier: GPL-2.0-only
/*
 * taker: uses what any module may use.
 */

#include <linux/init.h>
#include <linux/module.h>

int giver_plain(void);

static int __init taker_init(void)
{
	return giver_plain() > 0 ? 0 : -EINVAL;
}

static void __exit taker_exit(void)
{
}

module_init(taker_init);
module_exit(taker_exit);

MODULE_DESCRIPTION("Uses a symbol of another module");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
