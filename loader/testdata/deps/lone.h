/* SPDX-License-Identifier: GPL-2.0-only */
/* A module that needs no other, whose init takes as long and returns what it is told. */

#include <linux/delay.h>
#include <linux/init.h>
#include <linux/module.h>

static int ret;
module_param(ret, int, 0444);
MODULE_PARM_DESC(ret, "what init returns: 0 or a negative errno");

static unsigned int takes_ms;
module_param(takes_ms, uint, 0444);
MODULE_PARM_DESC(takes_ms, "how long init takes");

static int __init lone_init(void)
{
	if (takes_ms)
		msleep(takes_ms);
	return ret;
}

static void __exit lone_exit(void)
{
}

module_init(lone_init);
module_exit(lone_exit);

MODULE_DESCRIPTION("Needs nothing");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
