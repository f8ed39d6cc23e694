// SPDX-License-Identifier: GPL-2.0-only
/*
 * takergpl: uses what is for GPL modules only.
 */

#include <linux/init.h>
#include <linux/module.h>

int giver_gpl(void);

static int __init takergpl_init(void)
{
	return giver_gpl() > 0 ? 0 : -EINVAL;
}

static void __exit takergpl_exit(void)
{
}

module_init(takergpl_init);
module_exit(takergpl_exit);

MODULE_DESCRIPTION("Uses a symbol of another module");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
