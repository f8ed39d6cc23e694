// SPDX-License-Identifier: GPL-2.0-only
/*
 * giver: exports a symbol in each of the three ways, and may take long to begin.
 */

#include <linux/delay.h>
#include <linux/init.h>
#include <linux/module.h>

static unsigned int takes_ms;
module_param(takes_ms, uint, 0444);
MODULE_PARM_DESC(takes_ms, "how long init takes");

int giver_plain(void);
int giver_gpl(void);
int giver_ns(void);

int giver_plain(void)
{
	return 1;
}
EXPORT_SYMBOL(giver_plain);

int giver_gpl(void)
{
	return 2;
}
EXPORT_SYMBOL_GPL(giver_gpl);

int giver_ns(void)
{
	return 3;
}
EXPORT_SYMBOL_NS(giver_ns, KMODCTL_GIVER);

static int __init giver_init(void)
{
	msleep(takes_ms);
	return 0;
}

static void __exit giver_exit(void)
{
}

module_init(giver_init);
module_exit(giver_exit);

MODULE_DESCRIPTION("Exports symbols");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
